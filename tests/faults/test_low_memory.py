"""A node that runs out of memory: Ray kills its workers then, ours too, and no entrypoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.judging import judged
from tests.faults.processes import in_session, start_waiting_job, titled
from tests.faults.supervisors import SUPERVISOR, wait_for_idle_supervisors
from tests.faults.table import Row, report, rounds, seeded
from tests.waiting import wait_until

MIB = 1024 * 1024
#: From what the machine uses before the cluster starts to the threshold of Ray: more than the
#: cluster takes.
ROOM_BYTES = 3072 * MIB
#: Takes memory until a file is there, and gives it back when another is.
HOG = f"""
import os, sys, time
enough, free, taken = *sys.argv[1:], []
print("pid", os.getpid(), flush=True)
while not os.path.exists(enough) and len(taken) < 100:
    taken.append(b"x" * {64 * MIB})
    time.sleep(0.02)
while not os.path.exists(free):
    time.sleep(0.02)
sys.exit(7)
"""
LOW_S = (1.0, 5.0)
SUCCEEDED, FAILED, STOPPED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED


def memory_bytes() -> tuple[int, int]:
    """Return what the machine has of memory, and what of that is used."""
    with open("/proc/meminfo") as file:
        kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in file)}
    total = kib["MemTotal"] * 1024
    return total, total - kib["MemAvailable"] * 1024


def threshold() -> str:
    """Return the setting by which Ray kills workers once the machine uses so much more than now."""
    total, used = memory_bytes()
    return f"RAY_memory_usage_threshold={(used + ROOM_BYTES) / total:.4f}"


@pytest.fixture(params=[pytest.param("each its own", marks=pytest.mark.long), "shared"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    env = dict([threshold().split("=")])
    if request.param == "shared":
        env["RAY_JOBS_SUPERVISION"] = "dense"
    with plugin(enabled=True), running_cluster(env, cpus=2) as cluster:
        yield cluster


@rounds()
def test_of_the_head(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> None:
    name = f"low memory ({request.node.callspec.params['cluster']})"
    rng = seeded(name)
    with JobSubmissionClient(cluster.address) as client:
        client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        held, _ = start_waiting_job(client, tmp_path)
        stopped, _ = start_waiting_job(client, tmp_path / "never")
        own, _ = start_waiting_job(client, tmp_path, 6, entrypoint_num_cpus=0.1)
        (tmp_path / "hog.py").write_text(HOG)
        enough, free = tmp_path / "enough", tmp_path / "free"
        before = set(titled(SUPERVISOR))
        hog = client.submit_job(entrypoint=f"{sys.executable} {tmp_path}/hog.py {enough} {free}")
        wait_until(lambda: not before <= set(titled(SUPERVISOR)), "Ray kills one", 30)
        enough.touch()
        time.sleep(rng.uniform(*LOW_S))
        killed = len(before - set(titled(SUPERVISOR)))
        free.touch()  # until then Ray kills the manager too, again and again
        given_back = time.monotonic()
        assert client.stop_job(stopped) is True
        after = client.submit_job(entrypoint="true")
        submission_s = time.monotonic() - given_back
        assert client.wait_until_finish(after, timeout=60).status is SUCCEEDED
        assert {client.get_job_status(each) for each in (held, own)} == {JobStatus.RUNNING}
        (tmp_path / "go").touch()
        jobs = (held, stopped, own, hog, after)
        for each in jobs:
            client.wait_until_finish(each, timeout=60)
        ends: dict[str, tuple[JobStatus, int | None]] = {
            held: (FAILED, 5),
            stopped: (STOPPED, None),
            own: (FAILED, 6),
            hog: (FAILED, 7),
            after: (SUCCEEDED, 0),
        }
        verdict = judged(client, ends)
    wait_for_idle_supervisors(1)
    report(Row(name, killed, verdict, submission_s=submission_s))


@rounds()
def test_of_a_worker_node(tmp_path: Path) -> None:
    """The manager lives on, and is told of each death that it was by memory."""
    name = "low memory of a worker node"
    rng = seeded(name)
    there: dict[str, Any] = {"entrypoint_resources": {"small": 0.1}}
    (tmp_path / "hog.py").write_text(HOG)
    enough, free = tmp_path / "enough", tmp_path / "free"
    with (
        plugin(enabled=True),
        running_cluster(cpus=1) as cluster,
        JobSubmissionClient(cluster.address) as client,
    ):
        client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        node = cluster.add_node(resources={"small": 1}, inside=["env", threshold()])
        held, _ = start_waiting_job(client, tmp_path, 6, **there)
        stopped, _ = start_waiting_job(client, tmp_path / "never", 6, **there)
        before = set(titled(SUPERVISOR)) & set(in_session(node))
        assert len(before) == 2
        hog = client.submit_job(
            entrypoint=f"{sys.executable} {tmp_path}/hog.py {enough} {free}", **there
        )
        wait_until(lambda: before.isdisjoint(titled(SUPERVISOR)), "Ray kills them", 30)
        enough.touch()
        time.sleep(rng.uniform(*LOW_S))
        asked = time.monotonic()
        assert client.stop_job(stopped) is True
        free.touch()
        assert client.wait_until_finish(stopped, timeout=60).status is STOPPED
        stopped_s = time.monotonic() - asked
        assert client.get_job_status(held) is JobStatus.RUNNING
        (tmp_path / "go").touch()
        ends: dict[str, tuple[JobStatus, int | None]] = {
            held: (FAILED, 6),
            stopped: (STOPPED, None),
            hog: (FAILED, 7),
        }
        for job in ends:
            client.wait_until_finish(job, timeout=60)
        verdict = judged(client, ends)
    report(Row(name, len(before), verdict, notice_s=stopped_s))
