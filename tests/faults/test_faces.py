"""The hosts of the HTTP face, killed: gateway and dashboard, alone and with what is behind them."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient
from tests.cluster import Cluster
from tests.faults.campaign import Campaign, campaign
from tests.faults.faces import (
    dashboard_pid,
    gateways,
    kill_dashboard,
    kill_gateway,
    lenient_cluster,
    serving,
    watched_dashboard,
)
from tests.faults.processes import named, parent_of, runs, send, titled
from tests.faults.supervisors import MANAGER, SUPERVISOR
from tests.faults.table import rounds
from tests.faults.tails import Tails
from tests.gateway import running_gateway
from tests.waiting import wait_until

#: Some thousand lines a second, until a file is there.
COUNTS = """
import itertools, os, sys, time
for number in itertools.count():
    print(number, "x" * (number % 50), "\\u00e9", flush=True)
    if number % 25 == 0:
        if os.path.exists(sys.argv[1]):
            break
        time.sleep(0.005)
"""
#: Until the tails have read what they lag behind, after the end of the job.
TAILS_END_S = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with lenient_cluster({"RAY_AUTH_MODE": "disabled"}) as cluster:
        with JobSubmissionClient(cluster.address) as client:  # manager and pool start with it
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield cluster


@pytest.fixture
def gateway(cluster: Cluster) -> Iterator[str]:
    with running_gateway(cluster) as url:
        yield url


@pytest.fixture
def dashboard(cluster: Cluster) -> Iterator[str]:
    with watched_dashboard(cluster):
        yield cluster.address


@rounds()
async def test_gateway(gateway: str, tmp_path: Path) -> None:
    async with campaign("the gateway killed", gateway, tmp_path, face_lives=False) as run:
        await run.inject(kill_gateway, 5, (0.1, 3.0), serving(gateway))


@rounds()
async def test_dashboard(cluster: Cluster, dashboard: str, tmp_path: Path) -> None:
    async with campaign("the dashboard killed", dashboard, tmp_path, face_lives=False) as run:
        # Now and then while it starts, mostly after.
        kill = functools.partial(kill_dashboard, cluster)
        await run.inject(kill, 3, (1.0, 7.0), serving(dashboard))


@rounds()
@pytest.mark.parametrize("face", ["gateway", pytest.param("dashboard", marks=pytest.mark.long)])
async def test_all_within_a_second(
    request: pytest.FixtureRequest, cluster: Cluster, dashboard: str, tmp_path: Path, face: str
) -> None:
    """Seen through the gateway, which lives on, the manager is back as if it had died alone.

    The dashboard, which dies with it, has no bounds in seconds: Ray takes its time to start it.
    """
    address: str = request.getfixturevalue(face)
    async with campaign(
        f"manager, supervisor, dashboard within 1 s (by {face})",
        address,
        tmp_path,
        face_lives=face == "gateway",
    ) as run:
        kill = functools.partial(kill_all, cluster, run, face)
        await run.inject(kill, 2, (1.0, 8.0), serving(dashboard))
    await serving(dashboard)(0)  # it is back too, whichever face the workload saw


async def kill_all(cluster: Cluster, run: Campaign, face: str) -> bool:
    """Kill manager, a supervisor and the dashboard in any order, within a second.

    Returns whether all three were there. What the workload notices counts from the death of the
    manager, or of the dashboard if that comes later and is its face.
    """
    await run.prepare()
    managers, supervisors = titled(MANAGER), titled(SUPERVISOR)
    dashboard = dashboard_pid(cluster)
    if not managers or not supervisors or dashboard is None:
        return False
    noticed = {*managers, dashboard} if face == "dashboard" else {*managers}
    victims = [*managers, run.rng.choice(supervisors), dashboard]
    run.rng.shuffle(victims)
    for pid in victims:
        send(pid)
        if pid in managers:
            run.count_states()
        if pid in noticed:
            run.workload.injected_at = time.monotonic()
        await asyncio.sleep(run.rng.uniform(0, 0.4))
    return True


@rounds()
@pytest.mark.parametrize("face", ["gateway", "dashboard"])
async def test_tails_go_on(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path, face: str
) -> None:
    address: str = request.getfixturevalue(face)
    script, go, folder = tmp_path / "counts.py", tmp_path / "go", tmp_path / "jobs"
    script.write_text(COUNTS)
    folder.mkdir()
    async with (
        campaign(
            f"the {face} killed under tails",
            address,
            folder,
            kinds=("quick", "short"),
            rate=0.5,
            face_lives=False,
        ) as run,
        AsyncJobSubmissionClient(address) as client,
    ):
        job_id = await client.submit_job(entrypoint=f"{sys.executable} {script} {go}")
        tails = Tails(cluster, client, address, job_id)
        is_served = serving(address)

        async def all_tail(injected: int) -> None:
            await is_served(injected)
            if injected != 1:  # that one comes while the server starts
                await tails.grown()

        def kill() -> bool:
            tails.check_none_is_over()
            return kill_gateway() if face == "gateway" else kill_dashboard(cluster)

        try:
            if face == "gateway":
                await run.inject(kill, 4, (0.3, 1.5), all_tail)
            else:
                await run.inject(kill, 2, (0.5, 2.0), all_tail)
            await all_tail(run.injected + 1)
            go.touch()
            await tails.end(TAILS_END_S)
        finally:
            go.touch()
            tails.close()
        log = (cluster.logs_dir / f"job-driver-{job_id}.log").read_bytes()
        numbers = [int(line.split()[0]) for line in log.splitlines()[1:]]
        assert numbers == list(range(len(numbers)))
        for each in tails.got:
            assert each == log, where_they_differ(each, log)


def where_they_differ(found: bytearray, log: bytes) -> str:
    pairs = enumerate(zip(found, log, strict=False))
    start = next((i for i, (one, other) in pairs if one != other), min(len(found), len(log)))
    return f"{len(found)} bytes of {len(log)}; at {start}: {bytes(found[start : start + 80])!r}"


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
