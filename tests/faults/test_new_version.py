"""Another version is installed under a running cluster: its manager takes over."""

from __future__ import annotations

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
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.faces import (
    gateways,
    kill_dashboard,
    nobody_ends_it_for_a_dead_process,
    watched_dashboard,
)
from tests.faults.processes import named, runs, start_waiting_job, titled
from tests.gateway import running_gateway
from tests.waiting import wait_until

MANAGER = "ray::JobManager"
SUPERVISOR = "ray::JobSupervisor"
OLD_VERSION = "0.0.9"
TREE = Path(__file__).parents[2]
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
    env = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(installation.path)}
    with (
        plugin(enabled=True),
        running_cluster(env, cpus=2) as cluster,
        nobody_ends_it_for_a_dead_process(cluster),
        watched_dashboard(cluster),
    ):
        yield cluster


def server_version(address: str) -> str | None:
    with JobSubmissionClient(address) as client, contextlib.suppress(ray_jobs.RayJobsError):
        return client.get_server_info().server_version  # a client asks once
    return None


def test_manager_of_the_previous_version(
    cluster: Cluster, installation: Installation, tmp_path: Path
) -> None:
    with JobSubmissionClient(cluster.address) as client, running_gateway(cluster) as old_gateway:
        assert server_version(cluster.address) == OLD_VERSION
        pooled, pid = start_waiting_job(client, tmp_path)
        own = client.submit_job(
            entrypoint=f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 6",
            entrypoint_num_cpus=0.1,
        )
        wait_until(lambda: client.get_job_status(own) is JobStatus.RUNNING, "it runs", 30)
        queued = client.submit_job(entrypoint="exit 0", entrypoint_resources={"nowhere": 1})
        assert MARK in client.get_job_logs(pooled)
        [manager] = titled(MANAGER)
        zygotes = set(named("ray-jobs-zygote"))
        [serving] = gateways()

        # It hangs when it is replaced, and writes no more once it goes on.
        os.kill(manager, signal.SIGSTOP)
        installation.upgrade()
        kill_dashboard(cluster)
        wait_until(lambda: server_version(cluster.address) == VERSION, "the new plugin", 60)
        assert client.get_job_status(pooled) is JobStatus.RUNNING
        after = client.submit_job(entrypoint="echo after")
        assert client.wait_until_finish(after, timeout=60).status is JobStatus.SUCCEEDED
        assert MARK not in client.get_job_logs(after)
        if runs(manager):
            os.kill(manager, signal.SIGCONT)
        wait_until(lambda: not runs(manager), "the old manager is gone", 10)
        assert len(set(titled(MANAGER)) - {manager}) == 1
        assert set(named("ray-jobs-zygote")) > zygotes, "the new version has its own"

        # What runs went on, under whoever has it; the old gateway sees it too, and changes nothing.
        [successor] = titled(MANAGER)
        with JobSubmissionClient(old_gateway) as old_client:
            assert server_version(old_gateway) == OLD_VERSION
            assert old_client.get_job_status(pooled) is JobStatus.RUNNING
            by_old = old_client.submit_job(entrypoint="exit 7")
            assert old_client.wait_until_finish(by_old, timeout=60).driver_exit_code == 7
        assert titled(MANAGER) == [successor]
        assert gateways() == [serving]
        assert runs(pid)
        assert client.stop_job(queued) is True
        (tmp_path / "go").touch()
        assert client.wait_until_finish(pooled, timeout=30).driver_exit_code == 5
        assert client.wait_until_finish(own, timeout=30).driver_exit_code == 6
        assert client.get_job_status(queued) is JobStatus.STOPPED
