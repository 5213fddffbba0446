"""The head is stopped or killed, and started again on the same Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ray_jobs import JobInfo, JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import BIN
from tests.faults.campaign import Campaign, campaign
from tests.faults.processes import (
    ATTEMPT_VARIABLE,
    kill_titled,
    of_jobs,
    start_waiting_job,
    titled,
)
from tests.faults.redis_cluster import LastingCluster, lasting_cluster
from tests.faults.supervisors import MANAGER
from tests.faults.table import rounds
from tests.waiting import wait_until

#: Beside one in each state others come and go, so that the head dies at a random moment of theirs.
KINDS = ("quick", "quick", "short", "anonymous", "stopped")
RATE = 4.0
#: In one round. Each takes some 20 s.
RESTARTS = 2
RESTARTS_WITHOUT_DISK = 1
PAUSE_S = (0.0, 1.0)
GONE_WITHIN_S = 5.0
#: Ray takes a while to see that a node is gone that was the head itself.
BACK_TIMEOUT_S = 90.0
ENDS = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LastingCluster]:
    with lasting_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LastingCluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        yield client


class Jobs:
    """One job in each state.

    Args:
        resource: That no node has, until the head is started again.
    """

    def __init__(self, client: JobSubmissionClient, folder: Path, resource: str) -> None:
        self.folder = folder
        (folder / "running").mkdir()
        self._client = client
        self.ended: dict[str, tuple[JobStatus, int | None]] = {
            client.submit_job(entrypoint="echo fine"): (JobStatus.SUCCEEDED, 0),
            client.submit_job(entrypoint="echo bad; exit 3"): (JobStatus.FAILED, 3),
        }
        for each in self.ended:
            client.wait_until_finish(each, timeout=60)
        stopped = client.submit_job(entrypoint="sleep 1000")
        wait_until(lambda: client.get_job_status(stopped) is JobStatus.RUNNING, "it runs", 30)
        client.stop_job(stopped)
        client.wait_until_finish(stopped, timeout=30)
        self.ended[stopped] = (JobStatus.STOPPED, None)
        self.running, _ = start_waiting_job(client, folder / "running")
        #: Never started: nothing has what it asks for.
        self.pending = client.submit_job(
            entrypoint=f"printf x >> {folder}/pending; echo started",
            entrypoint_resources={resource: 1},
        )

    def check(self) -> None:
        """Hold each to what must have become of it."""
        infos = self._client.list_jobs()
        for submission_id, (status, code) in self.ended.items():
            info = infos[submission_id]
            assert (info.status, info.driver_exit_code) == (status, code)
        running = self._until_ended(self.running)
        assert running.status is JobStatus.FAILED
        assert "node" in (running.message or "")
        assert running.end_time is not None
        pending = self._until_ended(self.pending)
        assert pending.status is JobStatus.SUCCEEDED, pending.message
        assert (self.folder / "pending").read_text() == "x"
        new = self._client.submit_job(entrypoint="echo new")
        assert self._client.wait_until_finish(new, timeout=60).status is JobStatus.SUCCEEDED
        assert len(titled(MANAGER)) == 1

    def _until_ended(self, submission_id: str) -> JobInfo:
        return self._client.wait_until_finish(submission_id, timeout=BACK_TIMEOUT_S)


def mirrored(cluster: LastingCluster) -> dict[str, str]:
    """Return the statuses of submitted jobs as Ray's own record of each has them."""
    program = (
        "import json, sys; from ray._raylet import GcsClient as G;"
        " client = G(address=sys.argv[1]); prefix = b'_ray_internal_job_info_';"
        " keys = client.internal_kv_keys(prefix, b'job');"
        " print(json.dumps({key.decode()[len(prefix):]: json.loads("
        "client.internal_kv_get(key, b'job'))['status'] for key in keys}))"
    )
    done = subprocess.run(
        [str(BIN / "python"), "-c", program, cluster.gcs_address],
        env=cluster.env,
        capture_output=True,
        check=True,
        timeout=60,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@rounds()
async def test_killed_and_started_on_the_same_disk(
    cluster: LastingCluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    folders = iter(new_folders(tmp_path, RESTARTS))

    def restart() -> None:
        folder = next(folders)
        resource = f"later_{tmp_path.name}_{folder.name}"
        jobs = Jobs(client, folder, resource)
        # It ends while nobody is there to record it: its keeper has written down how.
        unseen, shell = start_waiting_job(client, folder / "unseen")
        status = cluster.session_dir / "ray_jobs" / "attempts" / attempt_of(shell) / "status.json"
        logs = {each: client.get_job_logs(each) for each in (*jobs.ended, jobs.running)}
        time.sleep(run.rng.uniform(*PAUSE_S))
        kill_titled(MANAGER)
        (folder / "unseen" / "go").touch()
        wait_until(lambda: '"exited"' in status.read_text(), "its end", 10)
        cluster.kill()
        start_again(cluster, run, resource)
        jobs.check()
        seen = client.wait_until_finish(unseen, timeout=BACK_TIMEOUT_S)
        assert (seen.status, seen.driver_exit_code) == (JobStatus.FAILED, 5)
        for submission_id, log in logs.items():
            assert client.get_job_logs(submission_id).startswith(log)

    async with head_campaign("head killed, back with its disk", cluster, tmp_path) as run:
        await run.inject(lambda: asyncio.to_thread(restart), RESTARTS, (0.0, 0.0))
    records = mirrored(cluster)
    assert records == {each: info.status for each, info in client.list_jobs().items()}
    assert set(records.values()) <= set(ENDS)


@rounds()
async def test_stopped_and_started_on_another_disk(
    cluster: LastingCluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    folders = iter(new_folders(tmp_path, RESTARTS_WITHOUT_DISK))

    def restart() -> None:
        folder = next(folders)
        resource = f"later_{tmp_path.name}_{folder.name}"
        jobs = Jobs(client, folder, resource)
        time.sleep(run.rng.uniform(*PAUSE_S))
        cluster.terminate()
        for session in cluster.folder.glob("session_2*"):
            shutil.rmtree(session)
        start_again(cluster, run, resource)
        jobs.check()
        for submission_id in jobs.ended:
            with pytest.raises(Exception, match="isn't on the head node"):
                client.get_job_logs(submission_id)

    async with head_campaign("head stopped, back without its disk", cluster, tmp_path) as run:
        await run.inject(lambda: asyncio.to_thread(restart), RESTARTS_WITHOUT_DISK, (0.0, 0.0))


def new_folders(folder: Path, count: int) -> list[Path]:
    """Return a folder for each time that the head is restarted."""
    found = [folder / str(number) for number in range(count)]
    for each in found:
        (each / "unseen").mkdir(parents=True)
    return found


def attempt_of(pid: int) -> str:
    """Return the attempt that a process is of, as its environment tells."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    [found] = [each for each in variables if each.startswith(ATTEMPT_VARIABLE)]
    return found.removeprefix(ATTEMPT_VARIABLE).decode()


def start_again(cluster: LastingCluster, run: Campaign, resource: str) -> None:
    """Start a head that is dead, with a resource that it hadn't before."""
    wait_until(lambda: not of_jobs(), "the jobs' processes are gone", GONE_WITHIN_S)
    cluster.start(cpus=2, resources={resource: 1})
    run.workload.injected_at = time.monotonic()  # it is back


@contextlib.asynccontextmanager
async def head_campaign(
    fault: str, cluster: LastingCluster, folder: Path
) -> AsyncIterator[Campaign]:
    """Run a campaign whose jobs end with the node that they run on."""
    jobs = folder / "jobs"
    jobs.mkdir()
    async with campaign(
        fault, cluster.address, jobs, kinds=KINDS, rate=RATE, face_lives=False
    ) as run:
        run.workload.excuse = "node"
        yield run
