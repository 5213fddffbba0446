"""The head is stopped or killed, and started again on the same Redis."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobInfo, JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import BIN
from tests.faults.processes import kill_titled, of_jobs, start_waiting_job, titled
from tests.faults.redis_cluster import LastingCluster, lasting_cluster
from tests.waiting import wait_until

MANAGER = "ray::JobManager"
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


def test_killed_and_started_on_the_same_disk(
    cluster: LastingCluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    jobs = Jobs(client, tmp_path, "later")
    # It ends while nobody is there to record it: its keeper has written down how.
    (tmp_path / "unseen").mkdir()
    unseen, _ = start_waiting_job(client, tmp_path / "unseen")
    logs = {each: client.get_job_logs(each) for each in (*jobs.ended, jobs.running)}
    kill_titled(MANAGER)
    (tmp_path / "unseen" / "go").touch()
    attempts = cluster.session_dir / "ray_jobs" / "attempts"
    wait_until(lambda: '"exited"' in statuses(attempts), "its end", 10)
    cluster.kill()
    wait_until(lambda: not of_jobs(), "the jobs' processes are gone", GONE_WITHIN_S)
    began = time.monotonic()
    cluster.start(cpus=2, resources={"later": 1})
    print(f"answers after {time.monotonic() - began:.1f} s")
    jobs.check()
    print(f"right after {time.monotonic() - began:.1f} s")
    seen = client.wait_until_finish(unseen, timeout=BACK_TIMEOUT_S)
    assert (seen.status, seen.driver_exit_code) == (JobStatus.FAILED, 5)
    for submission_id, log in logs.items():
        assert client.get_job_logs(submission_id).startswith(log)
    records = mirrored(cluster)
    assert records == {each: info.status for each, info in client.list_jobs().items()}
    assert set(records.values()) <= set(ENDS)


def statuses(attempts: Path) -> str:
    return "".join(path.read_text() for path in attempts.glob("*/status.json"))


def test_stopped_and_started_on_another_disk(
    cluster: LastingCluster, client: JobSubmissionClient, tmp_path: Path
) -> None:
    jobs = Jobs(client, tmp_path, "much_later")
    cluster.terminate()
    wait_until(lambda: not of_jobs(), "the jobs' processes are gone", GONE_WITHIN_S)
    for session in cluster.folder.glob("session_2*"):
        shutil.rmtree(session)
    cluster.start(cpus=2, resources={"much_later": 1})
    jobs.check()
    for submission_id in jobs.ended:
        with pytest.raises(Exception, match="isn't on the head node"):
            client.get_job_logs(submission_id)
