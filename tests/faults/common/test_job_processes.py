"""What happens to the processes of jobs: keepers, entrypoints, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.faults.campaign import Campaign, campaign
from tests.faults.common.modes import each_its_own
from tests.faults.leftovers import check_nothing_left
from tests.faults.processes import parent_of, send
from tests.faults.table import rounds
from tests.faults.workload import KILLED_CODE, STOP_WAIT_S, Stake
from tests.waiting import wait_until

#: The jobs that are hit come on top. Each that is held takes a supervisor: a second of CPU.
KINDS = ("held", "quick", "quick", "short", "short", "family", "stopped", "stopped")
RATE = 3.0
#: From a keeper's death, or the end of the stop wait, until the job's record says that it ended.
NOTICED_S = 1.0
#: Until it is given up to wait for that.
PATIENCE_S = 10.0
PAUSE_S = (0.0, 0.7)
#: Beyond the stop wait: see the issue of each job that doesn't want to end.
STUBBORN = ("deaf", "forking", "daemons")


pytestmark = each_its_own


async def victim(run: Campaign) -> tuple[Stake, int]:
    """Return a job that runs until it is let go, and the pid of its shell."""
    stake = run.workload.begin("held")
    pid = await run.workload.pid(stake)
    await asyncio.sleep(run.rng.uniform(0, 0.3))
    return stake, pid


def children(pid: int) -> tuple[list[int], list[int]]:
    """Return the children of a process: in its session, and in sessions of their own."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    kinds: tuple[list[int], list[int]] = [], []
    for child in found:
        kinds[os.getsid(child) == child].append(child)
    return kinds


async def until_failed(run: Campaign, stake: Stake, words: str) -> None:
    info = await run.workload.ended(stake, PATIENCE_S)
    assert info["status"] == "FAILED"
    assert re.search(words, info["message"]), info["message"]


@rounds()
async def test_keeper_killed(cluster: Cluster, tmp_path: Path) -> None:
    async def kill_keeper() -> None:
        stake, pid = await victim(run)
        keeper = parent_of(pid)
        stake.code = None  # FAILED, but nobody knows an exit code
        began = time.monotonic()
        send(keeper)
        await until_failed(run, stake, "keeper")
        noticed_s = time.monotonic() - began
        run.note(noticed_s)
        assert not run.workload.left_of(stake)
        assert noticed_s < NOTICED_S

    async with campaign(
        "a keeper killed", cluster.address, tmp_path, kinds=KINDS, rate=RATE
    ) as run:
        await run.inject(kill_keeper, 8, PAUSE_S)
    check_nothing_left(cluster)


@rounds()
async def test_shell_killed(cluster: Cluster, tmp_path: Path) -> None:
    async def kill_shell() -> None:
        stake, pid = await victim(run)
        stake.code = KILLED_CODE
        began = time.monotonic()
        send(pid)
        await until_failed(run, stake, f"exit code {KILLED_CODE}")
        run.note(time.monotonic() - began)
        assert not run.workload.left_of(stake)

    async with campaign(
        "the entrypoint's shell killed", cluster.address, tmp_path, kinds=KINDS, rate=RATE
    ) as run:
        await run.inject(kill_shell, 8, PAUSE_S)
    check_nothing_left(cluster)


@rounds()
@pytest.mark.parametrize("which", ["a child", "a child in a session of its own"])
async def test_child_killed(cluster: Cluster, tmp_path: Path, which: str) -> None:
    async def kill_child() -> None:
        _, pid = await victim(run)
        await asyncio.to_thread(wait_until, lambda: all(children(pid)), "its children")
        others, own_session = children(pid)
        send(run.rng.choice(own_session if "session" in which else others))

    async with campaign(
        f"{which} killed", cluster.address, tmp_path, kinds=KINDS, rate=RATE
    ) as run:
        await run.inject(kill_child, 5, PAUSE_S)
    check_nothing_left(cluster)


@rounds()
@pytest.mark.parametrize("kind", STUBBORN)
async def test_job_that_does_not_want_to_end(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    async def stop_it() -> None:
        stake = run.workload.begin(kind)
        await run.workload.pid(stake)
        await asyncio.sleep(run.rng.uniform(0, 0.3))
        began = time.monotonic()
        await run.workload.stop(stake)
        info = await run.workload.ended(stake, PATIENCE_S)
        late_s = time.monotonic() - began - STOP_WAIT_S
        run.note(late_s)
        assert info["status"] == "STOPPED"
        assert not run.workload.left_of(stake)
        assert late_s < NOTICED_S

    async with campaign(
        f"stop: {kind}", cluster.address, tmp_path, kinds=("quick",), rate=RATE
    ) as run:
        await run.inject(stop_it, 4, PAUSE_S)
    check_nothing_left(cluster)
