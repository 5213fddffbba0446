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
from tests.faults.faces import gateways, kill_dashboard, watched_cluster
from tests.faults.processes import named, runs, send, titled
from tests.faults.stored import check_kv_is_as_listed
from tests.gateway import running_gateway
from tests.waiting import wait_until

MANAGER = "ray::JobManager"
OLD_VERSION = "0.0.9"
TREE = Path(__file__).parents[2]
#: Submissions that are under way when the old manager hangs, and for how long by then.
IN_FLIGHT = 8
IN_FLIGHT_S = (0.0, 0.15)
#: Else Ray kills a manager that hangs 0.1 s after it is to end.
KILL_TIMEOUT = {"RAY_kill_worker_timeout_milliseconds": "60000"}
#: What only the previous version does: it tells of itself in each job's log.
MARK = "as told by the previous version"


class Installation:
    """What is installed for a cluster: a folder in its PYTHONPATH that another may take over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "installed"
        self._install("old", OLD_VERSION)
        line = folder / "old" / "ray_jobs" / "manager" / "supervisors.py"
        text = line.read_text()
        changed = text.replace("Running entrypoint for job", f"({MARK}) Running entrypoint for job")
        assert changed != text
        line.write_text(changed)
        with (folder / "old" / "ray_jobs" / "keeper" / "zygote.py").open("a") as file:
            file.write("# As in the previous version.\n")
        self._install("new", VERSION)
        self.path.symlink_to("old")

    def _install(self, name: str, version: str) -> None:
        root = self._folder / name
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

    def upgrade(self) -> None:
        self._point_to("new")

    def _point_to(self, name: str) -> None:
        aside = self._folder / "aside"
        aside.symlink_to(name)
        aside.replace(self.path)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


@pytest.fixture
def cluster(installation: Installation) -> Iterator[Cluster]:
    env = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(installation.path), **KILL_TIMEOUT}
    with watched_cluster(env) as cluster:
        yield cluster


def server_version(address: str) -> str | None:
    with JobSubmissionClient(address) as client, contextlib.suppress(ray_jobs.RayJobsError):
        return client.get_server_info().server_version  # a client asks once
    return None


def until_taken_over(cluster: Cluster) -> None:
    """Wait until a manager of the new version leads jobs."""
    wait_until(lambda: server_version(cluster.address) == VERSION, "the new plugin", 60)
    with JobSubmissionClient(cluster.address) as client:
        after = client.submit_job(entrypoint="echo after")
        assert client.wait_until_finish(after, timeout=60).status is JobStatus.SUCCEEDED
        assert MARK not in client.get_job_logs(after)


def check_old_gateway(address: str) -> None:
    """It works with the new manager, and doesn't replace it."""
    [successor], [serving] = titled(MANAGER), gateways()
    with JobSubmissionClient(address) as client:
        assert server_version(address) == OLD_VERSION
        job_id = client.submit_job(entrypoint="exit 7")
        assert client.wait_until_finish(job_id, timeout=60).driver_exit_code == 7
    assert titled(MANAGER) == [successor]
    assert gateways() == [serving]


async def test_manager_of_the_previous_version(
    cluster: Cluster, installation: Installation, tmp_path: Path, fault_round: int
) -> None:
    async def upgrade() -> None:
        [manager] = titled(MANAGER)
        for _ in range(IN_FLIGHT):
            run.workload.begin("quick")
        await asyncio.sleep(run.rng.uniform(*IN_FLIGHT_S))
        # It hangs with all that in its hands, until another has taken over.
        os.kill(manager, signal.SIGSTOP)
        try:
            installation.upgrade()
            kill_dashboard(cluster)
            await asyncio.to_thread(until_taken_over, cluster)
            assert runs(manager), "Ray has killed it: it can't go on"
        finally:
            send(manager, signal.SIGCONT)
        await asyncio.to_thread(wait_until, lambda: not runs(manager), "it is gone", 10)

    (tmp_path / "jobs").mkdir()
    with running_gateway(cluster) as old_gateway:
        assert server_version(cluster.address) == OLD_VERSION
        name = "upgrade, the old manager hangs and goes on"
        async with campaign(
            name, cluster.address, tmp_path / "jobs", kinds=(*KINDS, "own"), rate=3
        ) as run:
            running = [run.workload.begin(kind) for kind in ("held", "own")]
            pids = [await run.workload.pid(each) for each in running]
            zygotes = set(named("ray-jobs-zygote"))
            await run.inject(upgrade, 1, (0.5, 2.0))
            await asyncio.to_thread(check_old_gateway, old_gateway)
            assert set(named("ray-jobs-zygote")) > zygotes, "the new version has its own"
            assert all(map(runs, pids))
        check_kv_is_as_listed(cluster)
        with JobSubmissionClient(cluster.address) as client:
            assert all(MARK in client.get_job_logs(each.submission_id) for each in running)
