"""Two clocks that are looked at as one."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_jobs.keeper import clock
from ray_jobs.keeper.clock import NS_PER_MS, TRIES, boot_ms, wall_and_boot_ms, wall_ms

#: The wall clock when the machine was booted.
BOOTED_AT_NS = 1_700_000_000_123_456_789
LOOK_NS = 300
PAUSE_NS = 40 * NS_PER_MS
SLACK_MS = 1_000

in_any_time = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Machine:
    """Stands in for `time`: one moment, and two clocks that tell it.

    Args:
        paused: After which looks at a clock this process has to wait for a core.
    """

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self, now_ns: int, paused: frozenset[int] = frozenset()) -> None:
        self.now_ns = now_ns
        self._paused = paused
        self._looks = itertools.count()

    def clock_gettime_ns(self, which: int) -> int:
        assert which == self.CLOCK_BOOTTIME
        found = self.now_ns
        self.now_ns += LOOK_NS + PAUSE_NS * (next(self._looks) in self._paused)
        return found

    def time_ns(self) -> int:
        return BOOTED_AT_NS + self.clock_gettime_ns(self.CLOCK_BOOTTIME)


def off_by_ms(wall: int, boot: int) -> float:
    """Return how much later a time by both clocks is than it was."""
    return wall - boot - BOOTED_AT_NS / NS_PER_MS


@in_any_time
@given(st.integers(0, 10**18), st.frozensets(st.integers(0, 3 * (TRIES - 1) - 1)))
def test_of_the_same_moment_though_the_process_has_to_wait(
    now_ns: int, paused: frozenset[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", Machine(now_ns, paused))
        assert 0 <= off_by_ms(*wall_and_boot_ms()) <= 1.001


@in_any_time
@given(st.integers(0, 10**18), st.integers(0, 10**12))
def test_an_end_is_a_millisecond_off_at_most(started_ns: int, ran_ns: int) -> None:
    machine = Machine(started_ns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "time", machine)
        start_time, started_boot_ms = wall_and_boot_ms()
    ended_ns = machine.now_ns + ran_ns
    end_time = start_time + ended_ns // NS_PER_MS - started_boot_ms
    assert abs(end_time - (BOOTED_AT_NS + ended_ns) / NS_PER_MS) <= 1.001


def test_where_every_look_is_interrupted_the_shortest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always = frozenset(range(3 * TRIES)) - {6}
    machine = Machine(10**15, always)
    monkeypatch.setattr(clock, "time", machine)
    wall, boot = wall_and_boot_ms()
    assert 0 <= off_by_ms(wall, boot) <= 1.001
    assert machine.now_ns > 10**15 + TRIES * PAUSE_NS


def test_they_are_the_machines() -> None:
    wall, boot = wall_and_boot_ms()
    assert abs(wall - wall_ms()) < SLACK_MS
    assert abs(boot - boot_ms()) < SLACK_MS
