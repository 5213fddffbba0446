"""The table of faults: each injected at many random moments under a workload of many kinds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.campaign import Campaign, campaign, times
from tests.faults.processes import kill_titled, named, send, titled

#: After a kill of the manager: now and then before it is back, mostly after.
MANAGER_PAUSE_S = (0.2, 4.0)
PAUSE_S = (0.1, 1.5)
SUPERVISOR = "ray::JobSupervisor"
MANAGER = "ray::JobManager"


@pytest.fixture(scope="module", params=["each its own", "shared"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    env = {"RAY_AUTH_MODE": "disabled"}
    if request.param == "shared":
        env["RAY_JOBS_SUPERVISION"] = "dense"
    with plugin(enabled=True), running_cluster(env, cpus=2) as cluster:
        with JobSubmissionClient(cluster.address) as client:  # manager and pool start with it
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield cluster


@pytest.fixture
def supervision(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["cluster"])


async def test_manager_killed(cluster: Cluster, supervision: str, tmp_path: Path) -> None:
    name = f"manager killed ({supervision})"
    async with campaign(name, cluster.address, tmp_path) as run:
        await run.inject(lambda: none(kill_titled(MANAGER)), times(6), MANAGER_PAUSE_S)


async def test_any_supervisor_killed(cluster: Cluster, supervision: str, tmp_path: Path) -> None:
    name = f"a supervisor killed ({supervision})"
    async with campaign(name, cluster.address, tmp_path) as run:
        await run.inject(lambda: send_to_one(run, signal.SIGKILL), times(10), PAUSE_S)


async def test_all_supervisors_killed(cluster: Cluster, supervision: str, tmp_path: Path) -> None:
    name = f"all supervisors killed ({supervision})"
    async with campaign(name, cluster.address, tmp_path) as run:
        await run.inject(lambda: none(kill_titled(SUPERVISOR)), times(4), (0.5, 4.0))


async def test_supervisor_terminated(cluster: Cluster, supervision: str, tmp_path: Path) -> None:
    name = f"a supervisor ended by SIGTERM ({supervision})"
    async with campaign(name, cluster.address, tmp_path) as run:
        await run.inject(lambda: send_to_one(run, signal.SIGTERM), times(6), PAUSE_S)


async def test_zygote_killed(cluster: Cluster, supervision: str, tmp_path: Path) -> None:
    name = f"the zygote killed ({supervision})"
    async with campaign(name, cluster.address, tmp_path) as run:
        await run.inject(kill_zygotes, times(6), PAUSE_S)


async def test_manager_and_supervisors_killed(
    cluster: Cluster, supervision: str, tmp_path: Path
) -> None:
    name = f"manager and all supervisors killed ({supervision})"

    def kill_both() -> None:
        for title in run.rng.sample((MANAGER, SUPERVISOR), 2):
            kill_titled(title)

    async with campaign(name, cluster.address, tmp_path) as run:
        await run.inject(kill_both, times(4), (0.5, 6.0))


def none(_: object) -> None:
    """Make of what a fault returns nothing to wait for."""


def send_to_one(run: Campaign, signum: signal.Signals) -> None:
    pids = titled(SUPERVISOR)
    if pids:
        send(run.rng.choice(pids), signum)


def kill_zygotes() -> None:
    for pid in named("ray-jobs-zygote"):
        send(pid)
