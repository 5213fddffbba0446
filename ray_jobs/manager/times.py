"""Times of jobs that are right though the wall clock was stepped meanwhile.

A record has both: when its job was submitted by the wall clock, and by the clock of the machine
since its boot. How long ago that was, and so when it ended, is taken from the second; a job that
ended on another machine has its supervisor say how long ago. Where that can't be (the head has been
booted since, or is another machine), the head's wall clock is all there is.
"""

from __future__ import annotations

from typing import Any

from ray_jobs.keeper.clock import BOOT_ID, boot_ms, process_age_ms, wall_and_boot_ms, wall_ms
from ray_jobs.records import JobRecord
from ray_jobs.supervisor.node import raylet_pid

_WALL_MS, _BOOT_MS = wall_and_boot_ms()
#: When this machine was booted, in ms since epoch. Looked at once: were it for each job, jobs of
#: other boots would change places when the wall clock is set.
BOOTED_AT_MS = _WALL_MS - _BOOT_MS


def submitted_now() -> dict[str, Any]:
    """Return the fields of a new record that tell when it was submitted."""
    wall, boot = wall_and_boot_ms()
    return {"start_time": wall, "boot_id": BOOT_ID, "submitted_boot_ms": boot}


def by_our_clocks(report: dict[str, Any]) -> dict[str, Any]:
    """Return a supervisor's report, which has just come, with its end by this machine's clocks.

    Those of the machine where the job ran need not agree, its wall clock neither.
    """
    ago_ms = report.get("ended_ago_ms")  # not of earlier versions
    if ago_ms is None or report["boot_id"] == BOOT_ID:
        return report
    wall, boot = wall_and_boot_ms()
    return {
        **report,
        "boot_id": BOOT_ID,
        "ended_boot_ms": boot - ago_ms,
        "ended_at_ms": wall - ago_ms,
    }


def age_ms(record: JobRecord) -> int | None:
    """Return how long ago a job was submitted. None if it can't be told."""
    if not record.boot_id or record.boot_id != BOOT_ID:
        return None
    return max(0, boot_ms() - record.submitted_boot_ms)


def ended_boot_ms(record: JobRecord) -> int:
    """Return when a job ended, by the clock of the machine since its boot, in ms.

    It may be before the boot: below 0.
    """
    end_ms = record.end_time or 0
    if record.start_time is None or not record.boot_id or record.boot_id != BOOT_ID:
        return end_ms - BOOTED_AT_MS
    return record.submitted_boot_ms + end_ms - record.start_time


def now_ms(record: JobRecord) -> int:
    """Return what time it is for a job, in ms since epoch: so long after its start as it is."""
    age = age_ms(record)
    return wall_ms() if age is None or record.start_time is None else record.start_time + age


def waited_s(record: JobRecord) -> float:
    """Return for how long a job has been waiting to be started, in seconds.

    Not counting what was before this node was up: then nobody could start it.
    """
    try:
        node_age_ms = process_age_ms(raylet_pid())
    except OSError:
        return 0.0  # it goes down
    age = age_ms(record)
    return (node_age_ms if age is None else min(age, node_age_ms)) / 1000
