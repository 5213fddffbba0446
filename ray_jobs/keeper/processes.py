"""Finding and ending processes with all that is below them. Standard library only.

A process is named by its pid and its start, in ticks since boot: pids are used again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

TYPE_CHECKING = False  # typing's own would cost every keeper its memory
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Process = tuple[int, int]

MAX_STOP_ROUNDS = 100
#: Which of the machine's processes the kernel kills first when it has no memory left.
OOM_SCORE_FILE = "/proc/{}/oom_score_adj"
#: Fields of /proc/PID/stat behind the name.
STATE, PARENT, SESSION, START = 0, 1, 3, 19


def stat_of(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat behind the name, None if there is none to be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def identity_of(pid: int) -> Process:
    """Return what names a process. Raises ProcessLookupError if there is none."""
    stat = stat_of(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    return pid, int(stat[START])


def has_ended(process: Process) -> bool:
    """Return whether a process is gone, or only its exit status is left."""
    pid, start = process
    stat = stat_of(pid)
    return stat is None or int(stat[START]) != start or stat[STATE] in b"ZXx"


def ends_within(process: Process, timeout_s: float) -> bool:
    """Wait for the end of a process that isn't a child. Blocking.

    Raises OSError where the kernel can't tell (before Linux 5.3).
    """
    pid, start = process
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        stat = stat_of(pid)
        if stat is None or int(stat[START]) != start:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))
    finally:
        os.close(fd)


def watch_children() -> tuple[int, int]:
    """Have each death of a child make a pipe readable. Returns its ends, first the one to read."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_fd, write_fd


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
            stat = stat_of(int(entry))
            if stat is not None:
                table.setdefault(int(stat[PARENT]), []).append(int(entry))
    return table


def below(roots: Iterable[int], without: Iterable[int] = ()) -> list[Process]:
    """Return every process below some pids, parents before their children.

    Args:
        without: Pids that are left out, with what is below them.
    """
    found: list[Process] = []
    pending = list(roots)
    family = set(pending)
    left_out = set(without)
    table: dict[int, list[int]] | None = None
    while pending:
        pid = pending.pop()
        children = table.get(pid, []) if table is not None else children_of(pid)
        if children is None:
            table = children_by_parent()
            children = table.get(pid, [])
        for child in children:
            if child in family or child in left_out:
                continue
            stat = stat_of(child)
            # It may be gone, and its pid another's.
            if stat is not None and int(stat[PARENT]) in family:
                family.add(child)
                found.append((child, int(stat[START])))
                pending.append(child)
    return found


def send_signal(process: Process, signum: int) -> bool:
    """Send a signal to a process, if it is there still. Returns False if this one may not."""
    pid, start = process
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # before Linux 5.3, or no descriptor is left
        fd = None
    try:
        stat = stat_of(pid)
        if stat is None or int(stat[START]) != start:
            return True
        if fd is None:
            os.kill(pid, signum)
        else:
            signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        if fd is not None:
            os.close(fd)
    return True


def kill_all(find: Callable[[], Iterable[Process]]) -> tuple[set[Process], set[int]]:
    """Kill all that `find` finds.

    Stopped first, until a look finds nothing new: what forks for ever would outrun the killing.

    Returns what was found, and the pids of those that this process may not kill.
    """
    found: set[Process] = set()
    for _ in range(MAX_STOP_ROUNDS):
        new = set(find()) - found
        if not new:
            break
        for process in new:
            send_signal(process, signal.SIGSTOP)
        found |= new
    return found, {process[0] for process in found if not send_signal(process, signal.SIGKILL)}


def oom_score(process: int | str = "self") -> int | None:
    """Return the adjustment of a process's score, None where the kernel doesn't tell."""
    with contextlib.suppress(OSError, ValueError), open(OOM_SCORE_FILE.format(process)) as file:
        return int(file.read())
    return None


def set_oom_score(score: int | None) -> None:
    """Set the adjustment of this process's score, if it may be set."""
    if score is not None:
        with contextlib.suppress(OSError), open(OOM_SCORE_FILE.format("self"), "w") as file:
            file.write(str(score))
