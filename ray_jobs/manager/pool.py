"""The pool: supervisors that are alive already, for jobs that need none of their own.

Starting a supervisor costs a new interpreter that imports ray, about half a second of CPU: nearly
all that a short job costs. So some are kept idle. A job takes one and gives it back; where more
jobs wait than will soon be served, the pool grows, and it shrinks again when it is quiet.

No Ray here: supervisors are made and ended by a `Maker`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

from ray_jobs.environ import number

logger = logging.getLogger(__name__)

#: How long jobs may have to wait before the pool grows for them: about what it costs to grow.
PATIENCE_S = 3.0
MOST_PATIENCE_S = 60.0  #: Also for short jobs.
#: Jobs whose entrypoints run for less than this keep the machine busy by being started: another
#: supervisor would take from them what it costs to start it, and make none of them faster.
SHORT_JOB_S = 0.06
#: Releases of the last so many seconds tell how soon a waiting job will be served.
RATE_WINDOW_S = 1.0
#: A job has waited so long before the pool looks whether it must grow.
GROWTH_DELAY_S = 0.15
#: The pool is filled up again when the latest job has been given a supervisor so long ago.
REFILL_DELAY_S = 0.5
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 10.0

WARM_ENV_VAR = "RAY_JOBS_WARM_SUPERVISORS"
IDLE_ENV_VAR = "RAY_JOBS_WARM_IDLE_S"
SUPERVISION_ENV_VAR = "RAY_JOBS_SUPERVISION"
DENSE_ENV_VAR = "RAY_JOBS_DENSE_JOBS"
MOST_ENV_VAR = "RAY_JOBS_MAX_SUPERVISORS"
DEFAULT_WARM = 3
DEFAULT_IDLE_S = 60.0
DEFAULT_DENSE_JOBS = 64
#: Each job takes a call of its supervisor, which takes a thousand at once, orders included.
MOST_DENSE_JOBS = 200
#: What a supervisor takes, a Python that has imported ray; and the share of the node's memory that
#: all of them may take together, unless it is said how many they may be.
SUPERVISOR_BYTES = 64 * 1024 * 1024
MEMORY_SHARE = 0.5
LEAST_MOST = 8


@dataclasses.dataclass(frozen=True)
class PoolSettings:
    """How large the pool is."""

    warm: int = DEFAULT_WARM  #: There is room for so many jobs more, wherever possible.
    idle_s: float = DEFAULT_IDLE_S  #: A supervisor more than needed is ended when idle for so long.
    jobs_each: int = 1  #: Jobs that one supervisor may have at once: 1, or many (dense).
    #: Supervisors that are started at once: each keeps a core busy.
    starts_at_once: int = 2
    #: There are never more, dead ones' successors included: jobs wait for others to end then.
    #: Those of another version, which take no further job, come on top, and so does who takes over
    #: a job that runs: its own supervisor died, and left the room.
    most: int = 1000

    @property
    def most_idle(self) -> int:
        """How many supervisors without a job are kept: one more than wanted, which a job needed
        a moment ago, so that the pool doesn't breathe with every job.
        """
        return self.warm and -(-self.warm // self.jobs_each) + 1

    @classmethod
    def of(cls, environ: Mapping[str, str], memory_bytes: float) -> PoolSettings:
        """Return what the environment variables of the head node say.

        Args:
            memory_bytes: The memory of the node, or of its container.
        """
        fitting = max(LEAST_MOST, int(memory_bytes * MEMORY_SHARE / SUPERVISOR_BYTES))
        dense = environ.get(SUPERVISION_ENV_VAR, "").strip().lower() == "dense"
        jobs_each = int(number(environ, DENSE_ENV_VAR, float(DEFAULT_DENSE_JOBS))) if dense else 1
        return cls(
            warm=int(number(environ, WARM_ENV_VAR, float(DEFAULT_WARM))),
            idle_s=number(environ, IDLE_ENV_VAR, DEFAULT_IDLE_S),
            jobs_each=max(1, min(MOST_DENSE_JOBS, jobs_each)),
            starts_at_once=max(1, min(4, os.cpu_count() or 1)),
            most=max(1, int(number(environ, MOST_ENV_VAR, float(fitting)))),
        )


class Maker(Protocol):
    """Makes and ends supervisors."""

    async def make(self) -> Any:
        """Return a new supervisor's handle once it lives. Raises what keeps it from that."""

    async def end(self, handle: Any) -> None:
        """End a supervisor. What runs under it isn't touched."""

    async def death(self, handle: Any) -> None:
        """Return once a supervisor is dead."""


@dataclasses.dataclass(eq=False)
class Member:
    """A supervisor of the pool."""

    handle: Any
    jobs: int = 0
    #: On the clock of `time.monotonic`, when its last job left.
    idle_since: float = 0.0
    #: It is given no job any more, and ended with its last one: of another version, or silent.
    retires: bool = False
    #: Attempts whose ends have been recorded: told with the next order, or in a while.
    released: list[str] = dataclasses.field(default_factory=list)


class Pool:
    """Supervisors on the head node, and the jobs that wait for one."""

    def __init__(self, maker: Maker, settings: PoolSettings) -> None:
        self._maker = maker
        self._settings = settings
        self._members: list[Member] = []
        self._waiting: deque[asyncio.Future[Member]] = deque()
        #: Of those that wait, who wants to take over a job that runs.
        self._adopters: set[asyncio.Future[Member]] = set()
        self._waiting_since = 0.0
        self._served_at = time.monotonic()
        self._starting = 0
        self._retry_s = FIRST_RETRY_S
        #: When supervisors were given back, and for how long their jobs' entrypoints had run.
        self._releases: deque[tuple[float, float]] = deque()
        self._look: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, handle: Any, jobs: int = 0, *, retires: bool = False) -> Member:
        """Take in a supervisor that lives.

        Args:
            jobs: How many it has already.
            retires: It gets no others, and is ended after them.
        """
        member = Member(handle, jobs, time.monotonic(), retires)
        self._members.append(member)
        self.spawn(self._watch(member))
        self._end_if_surplus(member)
        self._serve()
        self._look_after(0)
        return member

    def fill(self) -> None:
        """Have the supervisors started that are to be kept warm."""
        self._look_after(0)

    async def acquire(self, *, first: bool = False) -> Member:
        """Return a supervisor with room for a job.

        Args:
            first: For a job that runs: before all that wait already, and though the pool is full.
        """
        member = self._with_room()
        if member is None:
            return await self._wait(first)
        member.jobs += 1
        self._look_after(REFILL_DELAY_S)
        return member

    def release(self, member: Member, ran_s: float = math.inf) -> None:
        """Give a supervisor back, dead or alive.

        Args:
            ran_s: For how long the job's entrypoint ran, if that is known.
        """
        now = time.monotonic()
        member.jobs -= 1
        member.idle_since = now
        self._end_if_surplus(member)
        self._releases.append((now, ran_s))
        while self._releases[0][0] < now - RATE_WINDOW_S:
            self._releases.popleft()
        self._serve()
        if not self._waiting and len(self._members) > self._settings.most_idle:
            self._look_after(self._settings.idle_s)

    def bury(self, member: Member) -> None:
        """Give no job to a supervisor any more: it is dead."""
        if member in self._members:
            self._members.remove(member)
            self._look_after(0)

    def retire(self, member: Member) -> None:
        """Give no job to a supervisor any more, and end it with its last one."""
        member.retires = True
        self._look_after(0)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something beside all else."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stalled_for_s(self) -> float:
        """Return for how long no job has got a supervisor though one waits, and may have it."""
        if self._is_full:
            return 0.0  # others must end first, however long they take
        return time.monotonic() - max(self._served_at, self._waiting_since)

    # --- inside -----------------------------------------------------------------------------

    def _end_if_surplus(self, member: Member) -> None:
        too_many = len(self._staying) > self._settings.most and not self._adopters
        if (member.retires or too_many) and member.jobs <= 0 and member in self._members:
            self._members.remove(member)
            self.spawn(self._maker.end(member.handle))

    @property
    def _staying(self) -> list[Member]:
        """Those that don't retire. Others don't count: they may have their last job for days."""
        return [member for member in self._members if not member.retires]

    @property
    def _is_full(self) -> bool:
        return len(self._staying) >= self._settings.most and not self._adopters

    def _with_room(self) -> Member | None:
        """Return the fullest supervisor that has room, so that others become idle."""
        best = None
        for member in self._members:
            if member.retires or member.jobs >= self._settings.jobs_each:
                continue
            if best is None or member.jobs > best.jobs:
                best = member
                if self._settings.jobs_each == 1:
                    break
        return best

    async def _wait(self, first: bool) -> Member:
        if not self._waiting:
            self._waiting_since = time.monotonic()
        future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(future)
            self._adopters.add(future)
            future.add_done_callback(self._adopters.discard)
        else:
            self._waiting.append(future)
        self._look_after(GROWTH_DELAY_S if self._staying else 0)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            elif future in self._waiting:
                self._waiting.remove(future)
            raise

    def _serve(self) -> None:
        """Give supervisors with room to jobs that wait."""
        while self._waiting:
            member = self._with_room()
            if member is None:
                return
            future = self._waiting.popleft()
            if not future.done():
                member.jobs += 1
                self._served_at = time.monotonic()
                future.set_result(member)

    def _look_after(self, delay_s: float) -> None:
        """Have `_adjust` called in a while, or sooner if that is planned already."""
        loop = asyncio.get_running_loop()
        if self._look is not None:
            if self._look.when() <= loop.time() + delay_s:
                return
            self._look.cancel()
        self._look = loop.call_later(delay_s, self._adjust)

    def _adjust(self) -> None:
        """Start or end supervisors, as is needed now."""
        self._look = None
        missing = self._missing()
        for _ in range(missing):
            self._starting += 1
            self.spawn(self._start())
        if self._waiting:
            if not self._is_full:  # if it is, an end is what they wait for
                self._look_after(GROWTH_DELAY_S)
        elif not missing:
            self._shrink()

    def _missing(self) -> int:
        """Return how many supervisors should be started now."""
        settings = self._settings
        staying = self._staying
        bound = max(settings.most - len(staying), len(self._adopters)) - self._starting
        may = min(settings.starts_at_once - self._starting, bound)
        room = sum(settings.jobs_each - member.jobs for member in staying)
        coming = self._starting * settings.jobs_each
        if self._waiting:
            if staying and self._serves_soon():
                return 0
            wanted = -(-(len(self._waiting) - coming) // settings.jobs_each)
        else:
            wanted = -(-(settings.warm - room - coming) // settings.jobs_each)
        return max(0, min(may, wanted))

    def _serves_soon(self) -> bool:
        """Return whether the waiting jobs will do without more supervisors, by the pace so far."""
        now = time.monotonic()
        window_s = min(RATE_WINDOW_S, max(GROWTH_DELAY_S, now - self._waiting_since))
        served = [ran_s for when, ran_s in self._releases if when > now - window_s]
        if not served:
            return False
        wait_s = len(self._waiting) * window_s / len(served)
        if wait_s <= PATIENCE_S:
            return True
        return statistics.median(served) <= SHORT_JOB_S and wait_s <= MOST_PATIENCE_S

    def _shrink(self) -> None:
        """End supervisors that have been idle for long, and look again when others will have."""
        now = time.monotonic()
        idle = [member for member in self._members if member.jobs == 0]
        idle.sort(key=lambda member: member.idle_since)
        spare = idle[: max(0, len(idle) - self._settings.most_idle)]
        for member in spare:
            left_s = member.idle_since + self._settings.idle_s - now
            if left_s > 0:
                self._look_after(left_s)
                return
            self._members.remove(member)
            self.spawn(self._maker.end(member.handle))

    async def _start(self) -> None:
        try:
            handle = await self._maker.make()
        except Exception:
            logger.exception("A supervisor can't be started; again in %.1f s.", self._retry_s)
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(LAST_RETRY_S, self._retry_s * 2)
            self._starting -= 1
            self._look_after(0)
            return
        self._retry_s = FIRST_RETRY_S
        self._starting -= 1
        self.join(handle)

    async def _watch(self, member: Member) -> None:
        await self._maker.death(member.handle)
        self.bury(member)
