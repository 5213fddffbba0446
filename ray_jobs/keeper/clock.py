"""The machine's clock that nobody sets. Standard library only.

The wall clock may be stepped, by an hour back or forward, while a job waits or runs. What took how
long is measured by the clock of the machine since its boot, which all processes on it share.
"""

from __future__ import annotations

import os
import time

NS_PER_MS = 1_000_000
#: Two looks at clocks that are further apart than this aren't of the same moment, and how often is
#: looked again.
SAME_MOMENT_NS = 50_000
TRIES = 20

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"


def wall_ms() -> int:
    """Return the time as people know it, in ms since epoch."""
    return int(time.time() * 1000)


def boot_ms() -> int:
    """Return how long ago the machine booted, in ms. It goes on while the machine is suspended."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)


def wall_and_boot_ms() -> tuple[int, int]:
    """Return `wall_ms` and `boot_ms` of one moment: a time told by both is 1 ms off at most.

    Between a look at one and at the other a process may have to wait for a core, or a thread for
    its turn. The second may be 1 ms less than `boot_ms`.
    """
    looks = []
    for _ in range(TRIES):
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall_ns = time.time_ns()
        took_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before_ns
        looks.append((took_ns, wall_ns, before_ns))
        if took_ns <= SAME_MOMENT_NS:
            break
    _, wall_ns, boot_ns = min(looks)
    # Both as of the beginning of the wall clock's ms: else what is cut off of each adds up.
    return wall_ns // NS_PER_MS, (boot_ns - wall_ns % NS_PER_MS) // NS_PER_MS


def read_boot_id() -> str:
    """Return what names this boot of this machine; empty where the kernel doesn't tell."""
    try:
        with open(BOOT_ID_FILE) as file:
            return file.read().strip()
    except OSError:
        return ""


#: `boot_ms` of two processes compare if they have the same one.
BOOT_ID = read_boot_id()


def process_age_ms(pid: int) -> int:
    """Return how long ago a process was started. Raises OSError if it is gone."""
    with open(f"/proc/{pid}/stat") as file:
        # Behind the name, which may hold anything: the start, in ticks since boot.
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    return boot_ms() - started_ticks * 1000 // os.sysconf("SC_CLK_TCK")
