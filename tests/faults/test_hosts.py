"""Logs of jobs on hosts of their own, which get lost and come back."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.adoption import Adoption
from tests.faults.hosts import HEAD_IP, Host, hosts
from tests.faults.judging import judged
from tests.faults.processes import kill_titled, titled
from tests.faults.supervisors import MANAGER, SUPERVISOR
from tests.faults.table import Row, report, rounds, seeded, times
from tests.faults.talking import Talker
from tests.faults.test_worker_node_ends import LAST_SECOND_S, NEWS_S, NODE_TIMEOUT, NOTICED_S
from tests.waiting import wait_until

#: Shorter than the node timeout, also with what TCP waits afterwards.
CUT_S = (1.0, 3.0)
PLACED_S = 20.0
#: Until lost packets are sent again: after a cut of some seconds TCP waits as long once more.
RESUMED_S = 10.0
#: Until manager, supervisor and the copy of a log are there again, each after the other.
BACK_S = 30.0
BLOCK_BYTES = 1024 * 1024
BLOCKS = 200
#: Of one process, however long the log is: the pieces on their way, and what Python keeps.
MOST_GROWTH_BYTES = 64 * 1024 * 1024
FAST_TIMEOUT_S = 90.0
WRITER = f"""
import random, sys
for number in range({BLOCKS}):
    sys.stdout.buffer.write(random.Random(number).randbytes({BLOCK_BYTES}))
"""
#: Where it is asked for, logs go from their hosts once they are on the head. None is removed there.
BOUND = {"RAY_JOBS_FINISHED_LOGS_MAX_BYTES": "100000000000"}
#: When its host is back, Ray's raylet there learns that the node was declared dead.
GONE_S = 30.0


@pytest.fixture(scope="module")
def away() -> Iterator[list[Host]]:
    with hosts(2) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(away: list[Host]) -> Iterator[Cluster]:
    env = {**NODE_TIMEOUT, **BOUND}
    with plugin(enabled=True), running_cluster(env, cpus=1, ip=HEAD_IP) as cluster:
        for number, host in enumerate(away):
            cluster.add_node(resources={f"host{number}": 2}, inside=host.inside, ip=host.ip)
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        yield client


def originals(cluster: Cluster, job_id: str) -> list[Path]:
    """Return the log of a job on the host where it ran, if it is there still."""
    return list(cluster.folder.glob(f"node*/session_2*/logs/job-driver-{job_id}.log*"))


def test_host_cut_off_and_back(
    cluster: Cluster, client: JobSubmissionClient, away: list[Host], tmp_path: Path
) -> None:
    fault = "a host cut off and back"
    rng = seeded(fault)
    job = Talker(client, cluster.logs_dir, "host0", until=tmp_path / "go")
    other = Talker(client, cluster.logs_dir, "host1", until=tmp_path / "go")
    job.wait_until_it_talks()
    other.wait_until_it_talks()
    resumed_s = []
    for _ in range(times(2)):
        away[0].cut_off()
        time.sleep(rng.uniform(*CUT_S))
        other.wait_for_news(NEWS_S)
        away[0].connect()
        resumed_s.append(job.wait_for_news(RESUMED_S))
        # By the connection by which the GCS looks whether the node lives.
        placed = client.submit_job(entrypoint="true", entrypoint_resources={"host0": 1})
        info = client.wait_until_finish(placed, timeout=PLACED_S)
        assert info.status is JobStatus.SUCCEEDED, info.message
    assert all(originals(cluster, each.job_id) for each in (job, other))
    (tmp_path / "go").touch()
    ends = succeeded(client, job, other)
    report(Row(fault, len(resumed_s), judged(client, ends), notice_s=max(resumed_s)))
    left = [job.job_id, other.job_id]
    wait_until(lambda: not any(originals(cluster, each) for each in left), "the head has both", 10)


def succeeded(
    client: JobSubmissionClient, *jobs: Talker
) -> dict[str, tuple[JobStatus, int | None]]:
    """Wait for the ends of jobs that were told to end, and check their logs.

    Returns how each must have ended.
    """
    for each in jobs:
        client.wait_until_finish(each.job_id, timeout=RESUMED_S)
        each.check_each_once()
    return {each.job_id: (JobStatus.SUCCEEDED, 0) for each in jobs}


def test_manager_and_supervisor_killed_while_it_streams(
    cluster: Cluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    fault = "manager, supervisor killed while a log streams"
    rng = seeded(fault)
    job = Talker(client, cluster.logs_dir, "host0", until=tmp_path / "go")
    job.wait_until_it_talks()
    resumed_s = []
    for number in range(times(2)):
        time.sleep(rng.uniform(0, 1))
        assert kill_titled(MANAGER)
        if number % 2:
            assert kill_titled(SUPERVISOR)
        resumed_s.append(job.wait_for_news(BACK_S))
    (tmp_path / "go").touch()
    ends = succeeded(client, job)
    report(Row(fault, len(resumed_s), judged(client, ends), notice_s=max(resumed_s)))
    wait_until(lambda: not originals(cluster, job.job_id), "the head alone has it", 10)


@rounds(2)
def test_adoption(client: JobSubmissionClient, away: list[Host], tmp_path: Path) -> None:
    """Another supervisor has to be started on the job's own node for it."""
    fault, gate, inside = "a supervisor killed on a worker node", tmp_path / "gate", away[0].inside
    resources = {"host0": 0.1}
    with Adoption(fault, client, gate, 2, inside=inside, entrypoint_resources=resources) as both:
        both.kill_own_supervisors()
        both.check_stops(1)
        both.check_ends()
    both.report()


class Memory:
    """The most memory of its own that any process of a kind takes, while this is entered."""

    def __init__(self, *titles: str) -> None:
        self._titles = titles
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.growth_bytes = 0

    def _watch(self) -> None:
        pids = [pid for title in self._titles for pid in titled(title)]
        before = {pid: own_bytes(pid) for pid in pids}
        while not self._over.wait(0.05):
            growth = max(own_bytes(pid) - before[pid] for pid in pids)
            self.growth_bytes = max(self.growth_bytes, growth)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def own_bytes(pid: int) -> int:
    """Return the memory of a process without what it shares. 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_fast_writer(cluster: Cluster, client: JobSubmissionClient, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job_id = client.submit_job(
        entrypoint=f'while [ ! -e {go} ]; do sleep 0.05; done; python3 -c "$WRITER"',
        entrypoint_resources={"host0": 1},
        runtime_env={"env_vars": {"WRITER": WRITER}},
    )
    path = cluster.logs_dir / f"job-driver-{job_id}.log"
    wait_until(lambda: "Running entrypoint" in client.get_job_logs(job_id), "it runs", 60)
    with Memory(MANAGER, SUPERVISOR) as memory:
        go.touch()
        info = client.wait_until_finish(job_id, timeout=FAST_TIMEOUT_S)
    assert info.status is JobStatus.SUCCEEDED, info.message
    assert info.start_time is not None
    assert info.end_time is not None
    print(f"{BLOCKS} MiB in {info.end_time - info.start_time} ms, {memory.growth_bytes:,} bytes")
    expected = hashlib.sha256()
    for number in range(BLOCKS):
        expected.update(random.Random(number).randbytes(BLOCK_BYTES))
    data = path.read_bytes()
    assert len(data) > BLOCKS * BLOCK_BYTES
    assert hashlib.sha256(data[-BLOCKS * BLOCK_BYTES :]).digest() == expected.digest()
    assert memory.growth_bytes < MOST_GROWTH_BYTES


@rounds()
def test_host_cut_off_for_good(
    cluster: Cluster, client: JobSubmissionClient, away: list[Host], fault_round: int
) -> None:
    """The last test: its node is declared dead."""
    fault = "a host cut off for good"
    rng = seeded(fault)
    if fault_round:  # instead of the one that the round before has cost
        cluster.add_node(resources={"host1": 2}, inside=away[1].inside, ip=away[1].ip)
    job = Talker(client, cluster.logs_dir, "host1")
    job.wait_until_it_talks()
    time.sleep(rng.uniform(0, 1))
    job.wait_for_news(NEWS_S)
    clock, began = time.time(), time.monotonic()
    away[1].cut_off()
    info = client.wait_until_finish(job.job_id, timeout=NOTICED_S)
    noticed_s = time.monotonic() - began
    assert "node" in (info.message or ""), info.message
    assert job.check_each_once() > clock - LAST_SECOND_S
    assert job.processes()  # nobody can reach it
    away[1].connect()
    wait_until(lambda: not job.processes(), "its processes are gone", GONE_S)
    job.check_each_once()
    assert originals(cluster, job.job_id)
    verdict = judged(client, {job.job_id: (JobStatus.FAILED, None)})
    report(Row(fault, 1, verdict, notice_s=noticed_s))
    cluster.kill_last_node()
