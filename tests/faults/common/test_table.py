"""The table of faults: each injected at many random moments under a workload of many kinds."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster import Cluster
from tests.faults.actor_killer import OWN, POOLED, actor_killer
from tests.faults.campaign import KINDS, STATES, Campaign, campaign
from tests.faults.common.modes import Mode
from tests.faults.leftovers import check_nothing_left
from tests.faults.processes import kill_titled, runs, send, titled, zygotes
from tests.faults.supervisors import (
    MANAGER,
    SUPERVISOR,
    busy_supervisors,
    idle_supervisors,
    wait_for_idle_supervisors,
)
from tests.faults.table import rounds
from tests.waiting import wait_until

#: Who is ended by a signal is gone so soon.
GONE_S = 2.0


def kill_manager(run: Campaign) -> bool:
    is_hit = bool(kill_titled(MANAGER))
    if is_hit:
        run.count_states()
    return is_hit


def kill_supervisors(_: Campaign) -> bool:
    return bool(kill_titled(SUPERVISOR))


async def kill_one_supervisor(run: Campaign) -> bool:
    return await send_to_one(run, signal.SIGKILL)


async def terminate_one_supervisor(run: Campaign) -> bool:
    return await send_to_one(run, signal.SIGTERM)


async def send_to_one(run: Campaign, signum: signal.Signals) -> bool:
    """End a supervisor with jobs by a signal, the next time one without.

    Returns whether there was one.
    """
    which = idle_supervisors if run.injected % 2 else busy_supervisors
    pids = await asyncio.to_thread(which)
    if not pids:
        return False
    pid = run.rng.choice(pids)
    send(pid, signum)
    await asyncio.to_thread(wait_until, lambda: not runs(pid), f"it ends by {signum.name}", GONE_S)
    return True


def kill_zygotes(_: Campaign) -> bool:
    pids = zygotes()
    for pid in pids:
        send(pid)
    return bool(pids)


def kill_both(run: Campaign) -> bool:
    if not titled(MANAGER) or not titled(SUPERVISOR):
        return False
    for title in run.rng.sample((MANAGER, SUPERVISOR), 2):
        kill_titled(title)
    run.count_states()
    return True


class Fault(NamedTuple):
    """What is done to a cluster, how often, and with which pauses (seconds)."""

    name: str
    inject: Callable[[Campaign], Awaitable[bool] | bool]
    times: int
    pause_s: tuple[float, float]
    marks: tuple[pytest.MarkDecorator, ...] = ()


#: Some have a supervisor of their own, which connects to the zygote anew.
OWN_KINDS = (*KINDS, "own", "placed")
#: Such a supervisor costs half a second of CPU, and so do those that are started anew: the machine
#: has two cores, and nothing is learnt from jobs that wait for them.
OWN_RATE = 2.5
#: It does the same however many jobs a supervisor has.
SAME_IF_SHARED = (pytest.mark.long_if_shared,)

FAULTS = [
    # Now and then before it is back, mostly after.
    Fault("manager killed", kill_manager, 6, (0.2, 4.0)),
    Fault("a supervisor killed, busy and idle in turn", kill_one_supervisor, 10, (0.1, 1.5)),
    Fault("all supervisors killed", kill_supervisors, 4, (0.5, 4.0)),
    Fault(
        "SIGTERM to a supervisor, in turn", terminate_one_supervisor, 6, (0.1, 1.5), SAME_IF_SHARED
    ),
    Fault("the zygote killed", kill_zygotes, 12, (0.1, 0.7), SAME_IF_SHARED),
    Fault("manager and all supervisors killed", kill_both, 4, (0.5, 6.0)),
]


@rounds()
@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, id=each.name, marks=each.marks) for each in FAULTS],
)
async def test_fault(
    cluster: Cluster, supervision: str, mode: Mode, tmp_path: Path, fault: Fault
) -> None:
    async with campaign(
        f"{fault.name} ({supervision})",
        cluster.address,
        tmp_path,
        kinds=OWN_KINDS,
        rate=OWN_RATE,
    ) as run:
        run.workload.begin("queued")

        async def inject() -> bool:
            await run.prepare()
            run.workload.injected_at = time.monotonic()
            done = fault.inject(run)
            return done if isinstance(done, bool) else await done

        await run.inject(inject, fault.times, fault.pause_s)
    if run.hit:
        assert set(run.hit) == set(STATES)
    wait_for_idle_supervisors(mode.idle)
    check_nothing_left(cluster)


@pytest.mark.long_if_shared
@rounds()
async def test_supervisors_ended_in_order(
    cluster: Cluster, supervision: str, mode: Mode, tmp_path: Path
) -> None:
    """Ray kills the children of a worker then: keepers aren't among them."""
    with actor_killer(cluster) as killer:
        async with campaign(
            f"a supervisor ended by ray.kill ({supervision})",
            cluster.address,
            tmp_path,
            kinds=(*KINDS, "placed"),
            rate=OWN_RATE,
        ) as run:

            async def own_one_runs(_: int) -> None:
                await run.workload.pid(run.workload.begin("own"))

            async def kill_one_of_each() -> bool:
                hits = []
                for kind in (OWN, POOLED):
                    choice = run.rng.randrange(1000)
                    hits.append(await asyncio.to_thread(killer.kill_one, kind, choice))
                return all(hits)

            await run.inject(kill_one_of_each, 4, (0.1, 1.0), own_one_runs)
    wait_for_idle_supervisors(mode.idle)
    check_nothing_left(cluster)
