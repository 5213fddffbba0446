"""A campaign: one kind of fault, injected at many random moments under a workload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.table import Row, report, seeded
from tests.faults.workload import ENDS, STOP_WAIT_S, Workload

KINDS = (
    *("quick",) * 4,
    *("short",) * 4,
    *("held",) * 2,
    *("stopped",) * 3,
    *("anonymous",) * 2,
    *("family", "queued", "packaged"),
)
#: In which a job may be when something is hit.
STATES = ("queued", "starting", "running", "stopping", "ended")
SUBMISSIONS_A_SECOND = 6.0
#: Jobs that are on their way to the zygote, and for how long by then.
IN_FLIGHT = ("quick", "quick", "anonymous", "short")
IN_FLIGHT_S = (0.0, 0.05)
PROBE_S = 0.02
#: How often is looked what the answers say: long lists aren't decoded fifty times a second.
LOOK_S = 0.25
#: A fault that finds nothing more often than this is none.
MISSES_A_HIT = 10
ABORT_TIMEOUT_S = 20.0
#: Reads don't wait for the manager, nor for the GCS.
READ_WITHIN_S = 2.0
#: A submission waits for the next manager, which has no machine of its own here.
SUBMITTED_WITHIN_S = 10.0
#: A stop may have to wait for whoever adopts its job.
ADOPTED_WITHIN_S = 3.0


class Campaign:
    """What a test injects faults into."""

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        self.workload = workload
        self.rng = rng
        #: The longest times without an answer to a read, the longest first.
        self.longest_reads_s = [0.0, 0.0]
        self.injected = 0
        #: How many had been injected when jobs were prepared last.
        self._prepared: int | None = None
        #: How many jobs were in which of `STATES` when something was hit.
        self.hit: Counter[str] = Counter()
        self._notices_s: list[float] = []
        #: The latest list of jobs that was read, unless it is decoded already.
        self._answer: bytes | None = None
        #: The latest that is.
        self._jobs: dict[str, dict[str, Any]] = {}

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
            before, self.workload.injected_at = self.workload.injected_at, time.monotonic()
            done = fault()
            hit = done if done is None or isinstance(done, bool) else await done
            if hit is False:
                self.workload.injected_at = before
                misses += 1
                assert misses <= MISSES_A_HIT * count, "there is nothing to hit"
                continue
            hits += 1
            self.injected += 1

    async def prepare(self) -> None:
        """Have jobs that are about to start or end, and every other time one that is stopped.

        No-op if nothing was hit since the last time.
        """
        if self._prepared == self.injected:
            return
        self._prepared = self.injected
        if self.injected % 2 == 0:
            await self.workload.begin_stop()
            await asyncio.sleep(self.rng.uniform(0, 0.6 * STOP_WAIT_S))
        await self.workload.begin_start()
        for kind in IN_FLIGHT:
            self.workload.begin(kind)
        await asyncio.sleep(self.rng.uniform(*IN_FLIGHT_S))

    async def probe(self) -> None:
        """Read all jobs again and again. Note the longest time without an answer, and the ends.

        Also those that only the last answer before a gap tells.
        """
        answered = looked = time.monotonic()
        try:
            while True:
                is_read = await self._is_read()
                if is_read:
                    self._note_gap(answered)
                    answered = time.monotonic()
                if not is_read or answered - looked > LOOK_S:
                    self._look()
                    looked = answered
                await asyncio.sleep(PROBE_S)
        finally:
            self._note_gap(answered)

    def _look(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._jobs = json.loads(answer)
            jobs = self._jobs.values()
            self.workload.see(each for each in jobs if each["submission_id"] is not None)

    def count_states(self) -> None:
        """Count the states of the workload's jobs for the table, as a client was told them last."""
        self._look()
        for stake in self.workload.jobs:
            if stake.submission_id in self._jobs:
                status = self._jobs[stake.submission_id]["status"]
            elif stake.acknowledged:  # only now
                status = "PENDING"
            else:
                continue
            if status in ENDS:
                state = "ended"
            elif stake.stop_acknowledged:
                state = "stopping"
            elif status == "RUNNING":
                state = "running"
            else:
                state = "queued" if stake.kind == "queued" else "starting"
            self.hit[state] += 1

    async def _is_read(self) -> bool:
        is_read = False
        with self.workload.request("a read"):
            async with self.workload.session.get(
                f"{self.workload.address}/api/jobs/",
                params={"format": "map"},
                timeout=aiohttp.ClientTimeout(total=30),
            ) as response:
                body = await response.read()
                is_read = response.status == 200
                if is_read:
                    self._answer = body
                else:  # nobody deletes a job here, nor is any list too long
                    self.workload.unanswered(f"a read: {response.status} {body[:500]!r}")
        return is_read

    def _note_gap(self, answered: float) -> None:
        gaps_s = [*self.longest_reads_s, time.monotonic() - answered]
        self.longest_reads_s = sorted(gaps_s, reverse=True)[:2]


@contextlib.asynccontextmanager
async def campaign(
    fault: str,
    address: str,
    folder: Path,
    *,
    kinds: tuple[str, ...] = KINDS,
    rate: float = SUBMISSIONS_A_SECOND,
    face_lives: bool = True,
    submitted_within_s: float = SUBMITTED_WITHIN_S,
) -> AsyncIterator[Campaign]:
    """Run a workload while faults are injected, then hold every job to its right end.

    Args:
        folder: Where jobs leave what they do. Empty.
        face_lives: So that reads are answered all the while, submissions soon, and no connection
            breaks.
        submitted_within_s: So soon, since they were sent or the fault was over.
    """
    rng = seeded(fault)
    workload = Workload(address, folder, rng, kinds, rate, face_lives=face_lives)
    run = Campaign(workload, rng)
    submitting = asyncio.ensure_future(workload.submit_for_ever())
    probing = asyncio.ensure_future(run.probe())
    try:
        yield run
        raise_failures((submitting, probing))
        submitting.cancel()
        await workload.finish()
        verdict = await workload.verdict()
        raise_failures((probing,))
    except BaseException:
        submitting.cancel()
        await asyncio.wait_for(workload.abort(), ABORT_TIMEOUT_S)
        raise
    finally:
        for task in (submitting, probing):
            task.cancel()
        await asyncio.wait((submitting, probing))
        await workload.close()
    (read_s, next_s), submission_s = run.longest_reads_s, workload.longest_submission_s
    notice_s = run.longest_notice_s
    report(Row(fault, run.injected, verdict, read_s, submission_s, notice_s, run.hit))
    if face_lives:
        # One may be a busy moment of the machine's. What waits does so at each injection.
        assert next_s < READ_WITHIN_S
        assert submission_s < submitted_within_s
        assert workload.longest_stop_s < STOP_WAIT_S + ADOPTED_WITHIN_S


def raise_failures(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Raise what has ended any of these, none of which ends by itself."""
    for task in tasks:
        if task.done():
            task.result()
