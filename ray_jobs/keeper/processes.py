"""Finding and ending every process below this one. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal

MAX_STOP_ROUNDS = 100


def children_of(pid: int) -> list[int] | None:
    """Return the pids of the children of a process, or None where the kernel can't tell."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(int(child) for child in file.read().split())
        except FileNotFoundError:
            if os.path.isdir(f"/proc/{pid}/task/{thread}"):
                return None
        except ProcessLookupError:
            continue
    return found


def children_by_parent() -> dict[int, list[int]]:
    """Return every process's children, from /proc/*/stat: for kernels without `children`."""
    table: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            table.setdefault(parent, []).append(int(entry))
    return table


def descendants() -> set[int]:
    """Return the pids of every process below this one."""
    found: set[int] = set()
    pending = [os.getpid()]
    table: dict[int, list[int]] | None = None
    while pending:
        pid = pending.pop()
        below = table.get(pid, []) if table is not None else children_of(pid)
        if below is None:
            table = children_by_parent()
            below = table.get(pid, [])
        pending.extend(child for child in below if child not in found)
        found.update(below)
    return found


def send_signal(pids: set[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def kill_descendants() -> None:
    """Kill everything below this process.

    Stopped first, until a look finds nothing new: what forks for ever would outrun the killing.
    """
    seen: set[int] = set()
    for _ in range(MAX_STOP_ROUNDS):
        new = descendants() - seen
        if not new:
            break
        send_signal(new, signal.SIGSTOP)
        seen |= new
    send_signal(seen, signal.SIGKILL)
