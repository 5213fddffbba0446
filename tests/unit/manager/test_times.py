"""Times of jobs, on both clocks of a record."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from ray_jobs.keeper.clock import BOOT_ID, boot_ms, wall_and_boot_ms, wall_ms
from ray_jobs.manager import times, transitions
from ray_jobs.manager.leads import Lead
from ray_jobs.manager.runner import Runner
from ray_jobs.manager.times import (
    age_ms,
    by_our_clocks,
    ended_boot_ms,
    now_ms,
    submitted_now,
    waited_s,
)
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord

HOUR_MS = 3600 * 1000
#: Between two readings of a clock in here.
SLACK_MS = 5_000


def job(**fields: Any) -> JobRecord:
    return JobRecord(
        submission_id="a",
        entrypoint="true",
        status=JobStatus.RUNNING,
        **{**submitted_now(), **fields},
    )


def old_job(age_ms: int, step_ms: int = 0) -> JobRecord:
    """Return a job that was submitted a while ago, since when the wall clock was stepped."""
    wall, boot = wall_and_boot_ms()
    return job(start_time=wall - age_ms - step_ms, submitted_boot_ms=boot - age_ms)


@pytest.fixture
def young_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A raylet that was started just now."""
    with subprocess.Popen(["sleep", "300"]) as raylet:
        monkeypatch.setenv("RAY_RAYLET_PID", str(raylet.pid))
        yield
        raylet.kill()


@pytest.mark.parametrize("step_ms", [0, HOUR_MS, -HOUR_MS])
def test_age_has_nothing_to_do_with_the_wall_clock(step_ms: int) -> None:
    record = old_job(60_000, step_ms)
    age = age_ms(record)
    assert age is not None
    assert 0 <= age - 60_000 < SLACK_MS
    assert 0 <= now_ms(record) - (record.start_time or 0) - 60_000 < SLACK_MS


@pytest.mark.parametrize("boot_id", ["", "another"])
def test_after_another_boot_there_is_only_the_wall_clock(boot_id: str) -> None:
    record = job(boot_id=boot_id, start_time=wall_ms() - 60_000, submitted_boot_ms=10**12)
    assert age_ms(record) is None
    assert abs(now_ms(record) - wall_ms()) < SLACK_MS


@pytest.mark.parametrize("step_ms", [0, HOUR_MS, -HOUR_MS])
def test_end_is_so_long_after_the_start_as_it_was(step_ms: int) -> None:
    record = old_job(60_000, step_ms)
    outcome = {
        "state": "exited",
        "code": 0,
        "ended_at_ms": wall_ms(),
        "ended_boot_ms": record.submitted_boot_ms + 42_000,
        "boot_id": BOOT_ID,
    }
    ended = transitions.concluded(record, outcome, now_ms(record))
    assert ended is not None
    assert (ended.end_time or 0) - (ended.start_time or 0) == 42_000


@pytest.mark.parametrize("boot_id", [BOOT_ID, "another"])
def test_ends_are_as_far_apart_as_they_were(boot_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a while may pass between a look at one clock and at the other."""
    ended = [
        job(boot_id=boot_id, start_time=1, submitted_boot_ms=1, end_time=each) for each in (5, 7)
    ]
    first = ended_boot_ms(ended[0])
    monkeypatch.setattr(times, "wall_ms", lambda: wall_ms() + 100)
    assert ended_boot_ms(ended[1]) - first == 2


def report_of_another_machine(**fields: Any) -> dict[str, Any]:
    """Return a report of a worker node whose wall clock is an hour off."""
    return {
        "state": "exited",
        "code": 0,
        "ended_at_ms": wall_ms() + HOUR_MS,
        "ended_boot_ms": 1,
        "boot_id": "another",
        **fields,
    }


@pytest.mark.parametrize("step_ms", [0, HOUR_MS, -HOUR_MS])
def test_end_on_another_machine_is_so_long_ago_as_it_says(step_ms: int) -> None:
    record = old_job(60_000, step_ms)
    report = by_our_clocks(report_of_another_machine(ended_ago_ms=7_000))
    ended = transitions.concluded(record, report, now_ms(record))
    assert ended is not None
    assert 0 <= (ended.end_time or 0) - (ended.start_time or 0) - 53_000 < SLACK_MS


def test_end_on_another_machine_of_a_job_of_another_boot() -> None:
    """The head was started again meanwhile: its wall clock is all there is, not the worker's."""
    record = job(boot_id="a former one", start_time=wall_ms() - 60_000, submitted_boot_ms=10**12)
    report = by_our_clocks(report_of_another_machine(ended_ago_ms=7_000))
    ended = transitions.concluded(record, report, now_ms(record))
    assert ended is not None
    assert abs((ended.end_time or 0) - wall_ms() + 7_000) < SLACK_MS


def test_report_of_an_earlier_version_is_taken_at_its_word() -> None:
    record = job()
    report = report_of_another_machine(ended_at_ms=(record.start_time or 0) + 7)
    assert by_our_clocks(report) == report
    ended = transitions.concluded(record, report, now_ms(record))
    assert ended is not None
    assert ended.end_time == (record.start_time or 0) + 7


def test_report_of_this_machine_needs_no_change() -> None:
    report = report_of_another_machine(boot_id=BOOT_ID, ended_ago_ms=3)
    assert by_our_clocks(report) == report


async def test_copy_of_a_log_does_not_put_off_the_end() -> None:
    """The report comes long before the log is whole."""
    copied_s = 0.3

    async def copy_remote(_: Any, __: Any, ended: asyncio.Future[Any]) -> bool:
        await asyncio.wait([ended])
        await asyncio.sleep(copied_s)
        return True

    async def report() -> dict[str, Any]:
        return report_of_another_machine(ended_ago_ms=0)

    services: Any = SimpleNamespace(journal=None, logs=SimpleNamespace(copy_remote=copy_remote))
    lead = Lead("a", recovering=False)
    lead.seat = cast(Any, object())
    outcome = await Runner(services)._outcome(lead, job(on_head=False), report)
    assert boot_ms() - outcome["ended_boot_ms"] >= copied_s * 1000


@pytest.mark.parametrize("step_ms", [0, HOUR_MS, -HOUR_MS])
def test_wait_for_a_start_has_nothing_to_do_with_the_wall_clock(
    step_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_RAYLET_PID", "1")  # a node that has been up for long
    assert 0 <= waited_s(old_job(2_000, step_ms)) - 2 < SLACK_MS / 1000


@pytest.mark.usefixtures("young_node")
def test_wait_for_a_start_counts_from_the_start_of_the_node() -> None:
    """A job that outlived its head in the KV has had no chance to be started meanwhile."""
    assert waited_s(old_job(1_000_000)) < SLACK_MS / 1000
    assert waited_s(old_job(0)) < SLACK_MS / 1000
    of_another_boot = msgspec.structs.replace(old_job(1_000_000), boot_id="another")
    assert waited_s(of_another_boot) < SLACK_MS / 1000


def test_clock_since_boot_is_the_machines() -> None:
    assert abs(boot_ms() - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < SLACK_MS
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == BOOT_ID
