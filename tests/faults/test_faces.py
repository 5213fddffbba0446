"""The hosts of the HTTP face, killed: gateway and dashboard, alone and with what is behind them."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.faults.campaign import Campaign, campaign, times
from tests.faults.faces import (
    gateways,
    kill_dashboard,
    kill_gateway,
    nobody_ends_it_for_a_dead_process,
    serving,
    watched_dashboard,
)
from tests.faults.processes import kill_titled, named, parent_of, runs, send, titled
from tests.gateway import running_gateway
from tests.waiting import wait_until

#: Some thousand lines a second, for some seconds.
LINES = 30_000
COUNTS = (
    "import time\n"
    f"for number in range({LINES}):\n"
    "    print(number, 'x' * (number % 50), '\\u00e9', flush=True)\n"
    "    if number % 25 == 0: time.sleep(0.005)\n"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    env = {"RAY_AUTH_MODE": "disabled"}
    with (
        plugin(enabled=True),
        running_cluster(env, cpus=2) as cluster,
        nobody_ends_it_for_a_dead_process(cluster),
    ):
        with JobSubmissionClient(cluster.address) as client:  # manager and pool start with it
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield cluster


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[str]:
    with running_gateway(cluster) as url:
        yield url


# For each test another watcher: the pauses of one grow.
@pytest.fixture
def dashboard(cluster: Cluster) -> Iterator[str]:
    with watched_dashboard(cluster):
        yield cluster.address


async def test_gateway(gateway: str, tmp_path: Path) -> None:
    async with campaign("the gateway killed", gateway, tmp_path) as run:
        await run.inject(kill_gateway, times(5), (0.1, 3.0), serving(gateway))


async def test_dashboard(cluster: Cluster, dashboard: str, tmp_path: Path) -> None:
    async with campaign("the dashboard killed", dashboard, tmp_path) as run:
        # Now and then while it starts, mostly after.
        kill = functools.partial(kill_dashboard, cluster)
        await run.inject(kill, times(2), (1.0, 7.0), serving(dashboard))


async def test_all_within_a_second(cluster: Cluster, dashboard: str, tmp_path: Path) -> None:
    name = "manager, supervisor and dashboard within a second"
    async with campaign(name, dashboard, tmp_path) as run:
        kill = functools.partial(kill_all, cluster, run)
        await run.inject(kill, times(2), (1.0, 8.0), serving(dashboard))


async def kill_all(cluster: Cluster, run: Campaign) -> bool:
    """Kill manager, a supervisor and the dashboard in any order, within a second.

    Returns whether all three were there.
    """

    def kill_a_supervisor() -> bool:
        pids = titled("ray::JobSupervisor")
        if pids:
            send(run.rng.choice(pids))
        return bool(pids)

    def kill_manager() -> bool:
        return bool(kill_titled("ray::JobManager"))

    faults: list[Callable[[], bool]] = [
        kill_manager,
        kill_a_supervisor,
        lambda: kill_dashboard(cluster),
    ]
    run.rng.shuffle(faults)
    hits = []
    for fault in faults:
        hits.append(fault())
        await asyncio.sleep(run.rng.uniform(0, 0.4))
    return all(hits)


@pytest.mark.parametrize("face", ["gateway", "dashboard"])
async def test_tails_go_on(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path, face: str
) -> None:
    address: str = request.getfixturevalue(face)
    script = tmp_path / "counts.py"
    script.write_text(COUNTS)
    folder = tmp_path / "jobs"
    folder.mkdir()
    name = f"the {face} killed under tails"
    async with (
        campaign(name, address, folder, kinds=("quick", "short"), rate=0.5) as run,
        AsyncJobSubmissionClient(address) as client,
    ):
        job_id = await client.submit_job(entrypoint=f"{sys.executable} {script}")
        tails = asyncio.gather(
            tail(client, job_id),
            asyncio.to_thread(tail_blocking, address, job_id),
            tail_at_a_shell(cluster, address, job_id),
        )
        if face == "gateway":
            await run.inject(kill_gateway, times(4), (0.3, 1.5), serving(address))
        else:
            kill = functools.partial(kill_dashboard, cluster)
            await run.inject(kill, times(1), (0.5, 2.0), serving(address))
        found = await asyncio.wait_for(tails, 60 * times(1))
        log = (cluster.logs_dir / f"job-driver-{job_id}.log").read_bytes()
        assert log.count(b"\n") == LINES + 1
        for each in found:
            assert each == log, where_they_differ(each, log)


async def tail(client: AsyncJobSubmissionClient, job_id: str) -> bytes:
    return "".join([chunk async for chunk in client.tail_job_logs(job_id)]).encode()


def tail_blocking(address: str, job_id: str) -> bytes:
    with JobSubmissionClient(address) as client:
        return "".join(client.tail_job_logs(job_id)).encode()


async def tail_at_a_shell(cluster: Cluster, address: str, job_id: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(str(BIN / "ray-jobs"), "logs", "-f", "--address", address, job_id),
        env=cluster.env,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return output


def where_they_differ(found: bytes, log: bytes) -> str:
    pairs = enumerate(zip(found, log, strict=False))
    start = next((i for i, (one, other) in pairs if one != other), min(len(found), len(log)))
    return f"{len(found)} bytes of {len(log)}; at {start}: {found[start : start + 80]!r}"


def test_gateway_and_its_watcher_die_together(cluster: Cluster) -> None:
    before = set(gateways())
    with running_gateway(cluster, ends_by_itself=True):
        [gateway] = set(gateways()) - before
        os.kill(parent_of(gateway), signal.SIGKILL)
        wait_until(lambda: not runs(gateway), "the gateway is gone", 2)


def test_all_end_with_the_raylet(cluster: Cluster, gateway: str, dashboard: str) -> None:
    """The last one: it ends the cluster."""
    del gateway, dashboard
    faces = gateways()
    watchers = [parent_of(pid) for pid in faces]
    [raylet] = named("raylet")
    os.kill(raylet, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: not any(map(runs, [*faces, *watchers])), "the gateway is gone", 5)
    print(f"gone {time.monotonic() - killed:.1f} s after the raylet")
