"""The table of faults: each injected at many random moments under a workload of many kinds."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ray_jobs import JobSubmissionClient
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.actor_killer import OWN, POOLED, actor_killer
from tests.faults.campaign import KINDS, SUBMISSIONS_A_SECOND, Campaign, campaign, times
from tests.faults.processes import kill_titled, named, send, titled

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


def kill_manager(_: Campaign) -> None:
    kill_titled(MANAGER)


def kill_supervisors(_: Campaign) -> None:
    kill_titled(SUPERVISOR)


def kill_one_supervisor(run: Campaign) -> None:
    send_to_one(run, signal.SIGKILL)


def terminate_one_supervisor(run: Campaign) -> None:
    send_to_one(run, signal.SIGTERM)


def send_to_one(run: Campaign, signum: signal.Signals) -> None:
    pids = titled(SUPERVISOR)
    if pids:
        send(run.rng.choice(pids), signum)


def kill_zygotes(_: Campaign) -> None:
    for pid in named("ray-jobs-zygote"):
        send(pid)


def kill_both(run: Campaign) -> None:
    for title in run.rng.sample((MANAGER, SUPERVISOR), 2):
        kill_titled(title)


class Fault(NamedTuple):
    """What is done to a cluster, how often, and with which pauses (seconds)."""

    name: str
    inject: Callable[[Campaign], None]
    times: int
    pause_s: tuple[float, float]
    kinds: tuple[str, ...] = KINDS
    rate: float = SUBMISSIONS_A_SECOND


#: Of these each has a supervisor of its own, which connects to the zygote anew.
OWN_KINDS = (*KINDS, "own", "placed", "placed")
#: A supervisor costs half a second of CPU.
OWN_RATE = 4.0

FAULTS = [
    # Now and then before it is back, mostly after.
    Fault("manager killed", kill_manager, 6, (0.2, 4.0)),
    Fault("a supervisor killed", kill_one_supervisor, 10, (0.1, 1.5)),
    Fault("all supervisors killed", kill_supervisors, 4, (0.5, 4.0)),
    Fault("a supervisor ended by SIGTERM", terminate_one_supervisor, 6, (0.1, 1.5)),
    Fault("the zygote killed", kill_zygotes, 12, (0.1, 0.7), OWN_KINDS, OWN_RATE),
    Fault("manager and all supervisors killed", kill_both, 4, (0.5, 6.0)),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_fault(cluster: Cluster, supervision: str, tmp_path: Path, fault: Fault) -> None:
    name = f"{fault.name} ({supervision})"
    async with campaign(name, cluster.address, tmp_path, kinds=fault.kinds, rate=fault.rate) as run:
        await run.inject(lambda: fault.inject(run), times(fault.times), fault.pause_s)


async def test_supervisors_ended_in_order(
    cluster: Cluster, supervision: str, tmp_path: Path
) -> None:
    """Ray kills the children of a worker then: keepers aren't among them."""
    name = f"a supervisor ended by ray.kill ({supervision})"
    kinds = (*KINDS, "own", "own")
    with actor_killer(cluster) as killer:
        async with campaign(name, cluster.address, tmp_path, kinds=kinds, rate=4) as run:
            await run.workload.pid(run.workload.begin("own"))

            killed = {POOLED: 0, OWN: 0}

            async def kill_one_of_each() -> None:
                for kind in killed:
                    choice = run.rng.randrange(1000)
                    killed[kind] += await asyncio.to_thread(killer.kill_one, kind, choice)

            await run.inject(kill_one_of_each, times(4), (0.1, 1.5))
            assert all(killed.values()), killed
