"""Which supervisor has which jobs, as the sockets between it and their keepers tell."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Sequence

from tests.faults.processes import named, titled
from tests.waiting import wait_until

MANAGER = "ray::JobManager"
SUPERVISOR = "ray::JobSupervisor"
KEEPER = "ray-jobs-keeper"
TIMEOUT_S = 10.0
#: Until the pool is filled up again. Each supervisor takes a core for half a second to start.
REFILLED_S = 10.0


def supervised(inside: Sequence[str] = ()) -> dict[int, set[int]]:
    """Return the pids of the keepers that each supervisor is connected to, by its own pid.

    Args:
        inside: The command that runs another one on the supervisors' host, if it isn't this one.
    """
    return connected(set(named(KEEPER)), inside)


def supervisors_without_task() -> list[int]:
    """Return those that have no job, and aren't in the pool: the manager isn't connected to them.

    How long one of the pool may be idle, the pool knows.
    """
    found = connected({*named(KEEPER), *titled(MANAGER)})
    return [pid for pid, others in found.items() if not others]


def connected(others: set[int], inside: Sequence[str] = ()) -> dict[int, set[int]]:
    """Return which of the `others` each supervisor is connected to, by its own pid."""
    holders: dict[str, set[int]] = {}
    peers: dict[str, str] = {}
    for line in _connected_sockets(inside):
        _, _, _, _, _, inode, _, peer, *users = line.split(None, 8)
        peers[inode] = peer
        holders[inode] = {int(pid) for pid in re.findall(r"pid=(\d+)", "".join(users))}
    found: dict[int, set[int]] = {pid: set() for pid in titled(SUPERVISOR)}
    for inode, pids in holders.items():
        for pid in pids & found.keys():
            found[pid] |= holders.get(peers[inode], set()) & others
    return found


def _connected_sockets(inside: Sequence[str]) -> list[str]:
    done = subprocess.run(
        [*inside, "ss", "--unix", "--processes", "--no-header", "state", "connected"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout.splitlines()


def idle_supervisors() -> list[int]:
    return [pid for pid, keepers in supervised().items() if not keepers]


def busy_supervisors() -> list[int]:
    return [pid for pid, keepers in supervised().items() if keepers]


def supervisors_of(keepers: set[int], inside: Sequence[str] = ()) -> set[int]:
    """Return those that are connected to any of these keepers. `inside`: as of `supervised`."""
    return {pid for pid, found in supervised(inside).items() if found & keepers}


def wait_for_idle_supervisors(count: int, besides: Collection[int] = ()) -> None:
    """Wait until so many have no job: the pool is filled up.

    Args:
        besides: Pids that don't count.
    """
    wait_until(
        lambda: len(set(idle_supervisors()) - set(besides)) >= count,
        f"{count} supervisors without a job",
        REFILLED_S,
    )
