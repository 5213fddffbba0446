"""A campaign: one kind of fault, injected at many random moments under a workload."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp

from tests.faults.workload import Verdict, Workload

KINDS = ("quick",) * 4 + ("short",) * 4 + ("held",) * 2 + ("stopped",) * 3 + ("family", "queued")
SUBMISSIONS_A_SECOND = 6.0
PROBE_S = 0.02
#: A fault that finds nothing more often than this is none.
MISSES_A_HIT = 10
ABORT_TIMEOUT_S = 20.0
SEED_ENV_VAR = "RAY_JOBS_FAULT_SEED"
#: `make test` shows that it holds, `make test-long` that it holds at rare moments too.
TIMES_ENV_VAR = "RAY_JOBS_FAULT_TIMES"


@dataclasses.dataclass
class Row:
    """One line of the table that is printed at the end."""

    fault: str
    times: int
    verdict: Verdict
    longest_read_s: float
    longest_submission_s: float
    longest_notice_s: float | None  #: Until the fault's own effect was seen, where it has one.


#: Of this run of the tests.
ROWS: list[Row] = []


def times(usual: int) -> int:
    """Return how often a fault is to be injected: `usual`, or that times what is asked for."""
    return usual * int(os.environ.get(TIMES_ENV_VAR, "1"))


class Campaign:
    """What a test injects faults into."""

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        self.workload = workload
        self.rng = rng
        self.longest_read_s = 0.0
        self.injected = 0
        self._notices_s: list[float] = []

    @property
    def longest_notice_s(self) -> float | None:
        return max(self._notices_s, default=None)

    def note(self, seconds: float) -> None:
        """Note how long it took until a fault's effect was seen."""
        self._notices_s.append(seconds)

    async def inject(
        self,
        fault: Callable[[], Awaitable[bool | None] | bool | None],
        count: int,
        pause_s: tuple[float, float],
        ready: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Inject a fault again and again, with pauses of random lengths.

        Args:
            fault: Returns False when there was nothing to hit: it is injected again instead.
            ready: Waited for before each pause. Called with how many have hit so far.
        """
        hits = misses = 0
        while hits < count:
            if ready is not None:
                await ready(hits)
            await asyncio.sleep(self.rng.uniform(*pause_s))
            self.workload.injected_at = time.monotonic()
            done = fault()
            hit = done if done is None or isinstance(done, bool) else await done
            if hit is False:
                misses += 1
                assert misses <= MISSES_A_HIT * count, "there is nothing to hit"
                continue
            hits += 1
            self.injected += 1

    async def probe(self) -> None:
        """Read a job again and again, and note the longest time without an answer."""
        answered = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    async with session.get(
                        f"{self.workload.address}/api/jobs/",
                        params={"format": "map"},
                        timeout=aiohttp.ClientTimeout(total=30),
                    ) as response:
                        if response.status == 200:
                            await response.read()
                            now = time.monotonic()
                            self.longest_read_s = max(self.longest_read_s, now - answered)
                            answered = now
                await asyncio.sleep(PROBE_S)


def seeded(fault: str) -> random.Random:
    """Return the random choices of a fault's injections. The seed is printed, to repeat them."""
    seed = int(os.environ.get(SEED_ENV_VAR, "0")) or random.SystemRandom().randrange(1, 10**9)
    print(f"{fault}: {SEED_ENV_VAR}={seed}")
    return random.Random(seed)


@contextlib.asynccontextmanager
async def campaign(
    fault: str,
    address: str,
    folder: Path,
    *,
    kinds: tuple[str, ...] = KINDS,
    rate: float = SUBMISSIONS_A_SECOND,
) -> AsyncIterator[Campaign]:
    """Run a workload while faults are injected, then hold every job to its right end.

    Args:
        folder: Where jobs leave what they do. Empty.
    """
    rng = seeded(fault)
    workload = Workload(address, folder, rng, kinds, rate)
    run = Campaign(workload, rng)
    background = [
        asyncio.ensure_future(workload.submit_for_ever()),
        asyncio.ensure_future(run.probe()),
    ]
    try:
        yield run
        background[0].cancel()
        await workload.finish()
        verdict = await workload.verdict()
    except BaseException:
        background[0].cancel()
        await asyncio.wait_for(workload.abort(), ABORT_TIMEOUT_S)
        raise
    finally:
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        await workload.close()
    ROWS.append(
        Row(
            fault,
            run.injected,
            verdict,
            run.longest_read_s,
            workload.longest_submission_s,
            run.longest_notice_s,
        )
    )
    assert verdict.jobs > 0
    assert not verdict.lost, verdict.lost
    assert not verdict.twice, verdict.twice
    assert not verdict.orphans, verdict.orphans
    assert not verdict.problems, verdict.problems
