"""The machine's clock that nobody sets. Standard library only.

The wall clock may be stepped, by an hour back or forward, while a job waits or runs. What took how
long is measured by the clock of the machine since its boot, which all processes on it share.
"""

from __future__ import annotations

import os
import time

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"


def wall_ms() -> int:
    """Return the time as people know it, in ms since epoch."""
    return int(time.time() * 1000)


def boot_ms() -> int:
    """Return how long ago the machine booted, in ms. It goes on while the machine is suspended."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)


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
