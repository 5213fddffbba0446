"""Another version is installed under a running cluster: its manager takes over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_jobs
from ray_jobs import JobSubmissionClient
from ray_jobs.claims import VERSION
from ray_jobs.models import JobStatus
from tests.cluster import Cluster
from tests.faults.campaign import KINDS, campaign
from tests.faults.faces import gateways, kill_dashboard, lenient_cluster, watched_dashboard
from tests.faults.processes import runs, send, titled, zygotes
from tests.faults.stored import check_kv_is_as_listed
from tests.faults.table import rounds
from tests.gateway import running_gateway
from tests.waiting import wait_until

MANAGER = "ray::JobManager"
#: One after the other.
VERSIONS = ("0.0.8", "0.0.9", VERSION)
TREE = Path(__file__).parents[2]
#: Submissions that are under way when the old manager hangs, and for how long by then.
IN_FLIGHT = 8
IN_FLIGHT_S = (0.0, 0.15)
#: Else Ray kills a manager that hangs 0.1 s after it is to end.
KILL_TIMEOUT = {"RAY_kill_worker_timeout_milliseconds": "60000"}


class Installation:
    """What is installed for a cluster: a folder in its PYTHONPATH that another may take over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "installed"
        for version in VERSIONS:
            self._install(version)
        self.version = VERSIONS[0]
        self.path.symlink_to(self.version)

    def _install(self, version: str) -> None:
        root = self._folder / version
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TREE / "ray_jobs", root / "ray_jobs", ignore=hidden)
        shutil.copytree(
            TREE / "dashboard_module", root / "ray_jobs" / "dashboard_module", ignore=hidden
        )
        metadata = root / f"ray_jobs-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: ray-jobs\nVersion: {version}\n"
        )
        # Each tells of itself in the log of each job, and has a zygote of its own.
        header = root / "ray_jobs" / "manager" / "supervisors.py"
        text = header.read_text()
        changed = text.replace("Running entrypoint for job", f"{mark(version)} Running it for job")
        assert changed != text
        header.write_text(changed)
        with (root / "ray_jobs" / "keeper" / "zygote.py").open("a") as file:
            file.write(f"# {mark(version)}\n")

    def upgrade(self) -> None:
        """Put the next version into the place of what is installed."""
        self.version = VERSIONS[VERSIONS.index(self.version) + 1]
        aside = self._folder / "aside"
        aside.symlink_to(self.version)
        aside.replace(self.path)


def mark(version: str) -> str:
    return f"(as told by {version})"


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


@pytest.fixture
def cluster(installation: Installation) -> Iterator[Cluster]:
    env = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(installation.path), **KILL_TIMEOUT}
    with lenient_cluster(env) as cluster, watched_dashboard(cluster):
        yield cluster


def server_version(address: str) -> str | None:
    with JobSubmissionClient(address) as client, contextlib.suppress(ray_jobs.RayJobsError):
        return client.get_server_info().server_version  # a client asks once
    return None


def until_taken_over(cluster: Cluster, version: str) -> None:
    """Wait until a manager of a version leads jobs."""
    wait_until(lambda: server_version(cluster.address) == version, "the new plugin", 60)
    with JobSubmissionClient(cluster.address) as client:
        after = client.submit_job(entrypoint="echo after")
        assert client.wait_until_finish(after, timeout=60).status is JobStatus.SUCCEEDED
        assert mark(version) in client.get_job_logs(after)


def check_old_gateway(address: str) -> None:
    """It works with the new manager, and doesn't replace it."""
    [successor], [serving] = titled(MANAGER), gateways()
    with JobSubmissionClient(address) as client:
        assert server_version(address) == VERSIONS[0]
        job_id = client.submit_job(entrypoint="exit 7")
        assert client.wait_until_finish(job_id, timeout=60).driver_exit_code == 7
    assert titled(MANAGER) == [successor]
    assert gateways() == [serving]


@rounds()
async def test_manager_of_the_previous_version(
    cluster: Cluster, installation: Installation, tmp_path: Path
) -> None:
    async def upgrade() -> None:
        [manager] = titled(MANAGER)
        await run.workload.begin_stop()
        for _ in range(IN_FLIGHT):
            run.workload.begin("quick")
        await asyncio.sleep(run.rng.uniform(*IN_FLIGHT_S))
        # It hangs with all that in its hands, until another has taken over.
        os.kill(manager, signal.SIGSTOP)
        try:
            installation.upgrade()
            kill_dashboard(cluster)
            await asyncio.to_thread(until_taken_over, cluster, installation.version)
            assert runs(manager), "Ray has killed it: it can't go on"
        finally:
            send(manager, signal.SIGCONT)
        await asyncio.to_thread(wait_until, lambda: not runs(manager), "it is gone", 10)

    (tmp_path / "jobs").mkdir()
    with running_gateway(cluster) as old_gateway:
        assert server_version(cluster.address) == VERSIONS[0]
        name = "upgrade, the old manager hangs and goes on"
        jobs, kinds = tmp_path / "jobs", (*KINDS, "own")
        async with campaign(
            name, cluster.address, jobs, kinds=kinds, rate=2, face_lives=False
        ) as run:
            running = [run.workload.begin(kind) for kind in ("held", "own")]
            pids = [await run.workload.pid(each) for each in running]
            before = set(zygotes())
            await run.inject(upgrade, len(VERSIONS) - 1, (0.5, 2.0))
            await asyncio.to_thread(check_old_gateway, old_gateway)
            assert set(zygotes()) > before, "a new version has its own"
            assert all(map(runs, pids))
        check_kv_is_as_listed(cluster)
        with JobSubmissionClient(cluster.address) as client:
            assert all(
                mark(VERSIONS[0]) in client.get_job_logs(each.submission_id) for each in running
            )
