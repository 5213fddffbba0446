"""The table of faults that is printed when all tests are done, and how often each is injected."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

SEED_ENV_VAR = "RAY_JOBS_FAULT_SEED"
#: `make test` shows that it holds, `make test-long` that it holds at rare moments too.
TIMES_ENV_VAR = "RAY_JOBS_FAULT_TIMES"
_Test = TypeVar("_Test", bound=Callable[..., Any])
# Read before the tests begin, which see none of the developer's settings.
_SEED = int(os.environ.get(SEED_ENV_VAR, "0"))
_TIMES = int(os.environ.get(TIMES_ENV_VAR, "1"))
UNKNOWN = "-"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a fault has cost. None: there is nobody who could tell."""

    jobs: int  #: At stake.
    lost: list[str] | None  #: Not at their right end.
    twice: list[str] | None  #: Started, or there, more than once.
    orphans: list[str] | None  #: Processes of jobs that have ended.
    #: Answers that no client should get.
    problems: list[str] = dataclasses.field(default_factory=list)

    def check(self) -> None:
        """Fail the test if it has cost anything."""
        assert self.jobs > 0
        for found in (self.lost, self.twice, self.orphans, self.problems):
            assert not found, found


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. None: it isn't known, or there is no such thing."""

    fault: str
    times: int
    verdict: Verdict
    read_s: float | None = None  #: The longest time without an answer to a read.
    submission_s: float | None = None  #: The slowest, counted from the fault if that came later.
    notice_s: float | None = None  #: Until the fault's own effect was seen, the slowest.
    #: How many jobs were in which state at the injections, together, where that was counted.
    hit: Counter[str] = dataclasses.field(default_factory=Counter)


#: Of this run of the tests, by fault.
ROWS: dict[str, Row] = {}


def report(row: Row) -> None:
    """Put a row into the table, with what is there of the same fault, and fail if it shows harm."""
    before = ROWS.get(row.fault)
    ROWS[row.fault] = row if before is None else _together(before, row)
    row.verdict.check()


def _together(one: Row, other: Row) -> Row:
    a, b = one.verdict, other.verdict
    verdict = Verdict(
        a.jobs + b.jobs,
        _joined(a.lost, b.lost),
        _joined(a.twice, b.twice),
        _joined(a.orphans, b.orphans),
        a.problems + b.problems,
    )
    return Row(
        one.fault,
        one.times + other.times,
        verdict,
        _longest(one.read_s, other.read_s),
        _longest(one.submission_s, other.submission_s),
        _longest(one.notice_s, other.notice_s),
        one.hit + other.hit,
    )


def _joined(one: list[str] | None, other: list[str] | None) -> list[str] | None:
    return None if one is None or other is None else one + other


def _longest(*seconds: float | None) -> float | None:
    return max((each for each in seconds if each is not None), default=None)


def lines() -> list[str]:
    """Return the table. Empty if no fault was injected."""
    if not ROWS:
        return []
    found = [
        f"{'fault':58} {'times':>5} {'jobs':>5} {'lost':>4} {'twice':>5} {'orphans':>7}"
        f" {'no read for':>11} {'slowest submission':>18} {'noticed in':>10}"
    ]
    for row in ROWS.values():
        verdict = row.verdict
        found.append(
            f"{row.fault:58} {row.times:5} {verdict.jobs:5} {_count(verdict.lost):>4}"
            f" {_count(verdict.twice):>5} {_count(verdict.orphans):>7}"
            f" {_seconds(row.read_s):>11} {_seconds(row.submission_s):>18}"
            f" {_seconds(row.notice_s):>10}"
        )
    for row in ROWS.values():
        if row.hit:
            states = ", ".join(f"{count} {state}" for state, count in sorted(row.hit.items()))
            found.append(f"jobs when it came: {row.fault}: {states}")
    return found


def _count(found: list[str] | None) -> str:
    return UNKNOWN if found is None else str(len(found))


def _seconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds:.2f} s"


def times(usual: int) -> int:
    """Return how often a fault is to be injected: `usual`, or that times what is asked for."""
    return usual * _TIMES


def rounds(usual: int = 1) -> Callable[[_Test], _Test]:
    """Have a test run so often, or that times what is asked for. Each time it injects the fault.

    Rather than one long campaign: in that, the jobs that are held to its end are more and more.
    """
    numbers = range(times(usual))
    again = pytest.mark.parametrize("fault_round", numbers, ids=lambda each: f"round {each + 1}")
    asked_for = pytest.mark.usefixtures("fault_round")  # or pytest misses the argument
    return lambda test: asked_for(again(test))


def seeded(fault: str) -> random.Random:
    """Return the random choices of a fault's injections. The seed is printed, to repeat them."""
    seed = _SEED or random.SystemRandom().randrange(1, 10**9)
    print(f"{fault}: {SEED_ENV_VAR}={seed}")
    return random.Random(seed)
