"""Ending what a keeper has left that is gone. Standard library only.

The zygote that forked the keeper inherits its children, and kills them. If it is gone as well, init
does: then they are found by their environment, by the entrypoint's session, and below those.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from ray_jobs.keeper.processes import (
    SESSION,
    START,
    Process,
    below,
    ends_within,
    identity_of,
    kill_all,
    stat_of,
)
from ray_jobs.keeper.sockets import ORPHANS_SUFFIX, short_path
from ray_jobs.supervisor.entrypoint import ATTEMPT_ENV_VAR
from ray_jobs.supervisor.node import (
    attempt_path,
    keeper_of,
    raylet_pid,
    read_status,
    work_dir,
)

#: A killed process may be held up in the kernel, by a dead network disk.
DEATH_TIMEOUT_S = 5.0


def kill_left(attempt_id: str) -> None:
    """Kill every process of an attempt. Returns once they are gone, and their keeper. Blocking."""
    deadline = time.monotonic() + DEATH_TIMEOUT_S
    directory = attempt_path(attempt_id)
    keeper = keeper_of(directory)
    status = read_status(directory)
    kill_found(attempt_id, keeper, status, deadline)
    if keeper is None:
        return
    # What it has started in its last moment is nobody's before it is gone.
    with contextlib.suppress(OSError):  # before Linux 5.3
        ends_within(keeper, deadline - time.monotonic())
    if not orphans_are_gone(status.get("zygote"), deadline - time.monotonic()):
        kill_found(attempt_id, keeper, status, deadline)


def orphans_are_gone(zygote: str | None, timeout_s: float) -> bool:
    """Wait until a zygote has ended what its dead keepers have left. Blocking.

    Returns False if there is none, or it doesn't tell.
    """
    if zygote is None:
        return False
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(max(0.001, timeout_s))
        try:
            with short_path(work_dir(), zygote + ORPHANS_SUFFIX) as path:
                connection.connect(path)
            return bool(connection.recv(1))
        except OSError:
            return False


def kill_found(
    attempt_id: str, keeper: Process | None, status: dict[str, Any], deadline: float
) -> None:
    """Kill what can be found of an attempt, and wait for its end until a deadline."""
    marker = f"{ATTEMPT_ENV_VAR}={attempt_id}".encode()
    session = session_of(keeper, status)

    def find() -> set[Process]:
        stats = all_stats()
        leader = stats.get(session)
        in_use_again = leader is not None and started_boot_ms(leader) > status["started_boot_ms"]
        found = {
            (pid, int(stat[START]))
            for pid, stat in stats.items()
            if (session and int(stat[SESSION]) == session and not in_use_again)
            or is_marked(pid, marker)
        }
        return found.union(below([pid for pid, _ in found]))

    found, _ = kill_all(find)
    for process in found:
        with contextlib.suppress(OSError):  # before Linux 5.3
            ends_within(process, deadline - time.monotonic())


def session_of(keeper: Process | None, status: dict[str, Any]) -> int:
    """Return the entrypoint's session. 0 if it isn't known, or may be another's now."""
    try:
        if keeper is None or keeper[1] < identity_of(raylet_pid())[1]:
            return 0  # of another life of this node, which may have had other numbers
    except ProcessLookupError:
        return 0
    return int(status.get("pid", 0))


def all_stats() -> dict[int, list[bytes]]:
    """Return the fields of /proc/PID/stat of all processes, by pid."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    stats = ((pid, stat_of(pid)) for pid in pids)
    return {pid: stat for pid, stat in stats if stat is not None}


def started_boot_ms(stat: list[bytes]) -> int:
    """Return when a process was started, in ms since boot, rounded down to some hundredths."""
    return int(stat[START]) * 1000 // os.sysconf("SC_CLK_TCK")


def is_marked(pid: int, marker: bytes) -> bool:
    """Return whether a process was started with an environment variable `NAME=value`."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read().split(b"\0")
    except OSError:  # gone, or not for everyone to see
        return False
