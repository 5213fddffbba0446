"""Seats: the supervisor that a job has, one of the pool's or one of its own."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ray.exceptions import RayError

from ray_jobs import _ray
from ray_jobs.channel import Channel
from ray_jobs.keeper.sockets import short_path
from ray_jobs.kv import Superseded
from ray_jobs.manager.calls import DIED, Supervisor, farewell, patiently
from ray_jobs.manager.pool import Member, Pool
from ray_jobs.manager.supervisors import CURRENT_PREFIX, Supervisors
from ray_jobs.supervisor.node import forget_channel, forget_ended, work_dir
from ray_jobs.timeouts import timeout

logger = logging.getLogger(__name__)

#: A supervisor is told of recorded ends with its next order, or after this time. Until then it
#: keeps their reports, a few hundred bytes each.
RELEASE_DELAY_S = 1.0
#: How long a new manager waits for the supervisors that it finds.
TAKE_OVER_TIMEOUT_S = 5.0


class Seat(Protocol):
    """A job's supervisor, for as long as the job has it."""

    def call(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """Call the supervisor, as `Supervisor.call` does."""

    def run(self, epoch: int, order: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        """Have an attempt started, and await its end."""

    def lost(self) -> None:
        """It is dead."""

    async def release(self, attempt: str) -> None:
        """How the attempt ended has been recorded: its report isn't needed any more."""

    async def leave(self) -> None:
        """The job doesn't need it any more."""

    async def discard(self) -> None:
        """It lives but doesn't answer: no job is to have it any more."""


class PooledSeat:
    """A supervisor of the pool."""

    def __init__(self, pool: Pool, member: Member) -> None:
        self._pool = pool
        self._member = member
        self._supervisor: Supervisor = member.handle
        self.call = self._supervisor.call
        self._ran_s = math.inf

    async def run(self, epoch: int, order: dict[str, Any]) -> dict[str, Any]:
        released = self._released()
        try:
            outcome: dict[str, Any] = await self.call("run", epoch, order, released)
        except RayError:
            self._tell_soon(released)  # if it lives, it hears of them again
            raise
        if "ended_at_ms" in outcome:
            self._ran_s = (outcome["ended_at_ms"] - outcome["started_at_ms"]) / 1000
        return outcome

    def _released(self) -> list[str]:
        released, self._member.released = self._member.released, []
        return released

    def lost(self) -> None:
        self._pool.bury(self._member)
        self._pool.release(self._member)
        self._tell_released()

    async def release(self, attempt: str) -> None:
        if self._member.retires:  # it may be gone before it hears of it later
            await _release(self, [attempt])
            return
        self._tell_soon([attempt])

    def _tell_soon(self, attempts: list[str]) -> None:
        if attempts and not self._member.released:
            asyncio.get_running_loop().call_later(RELEASE_DELAY_S, self._tell_released)
        self._member.released += attempts

    def _tell_released(self) -> None:
        released = self._released()
        if released:
            self._pool.spawn(_release(self, released))  # not awaited: nothing depends on it

    async def leave(self) -> None:
        self._pool.release(self._member, self._ran_s)

    async def discard(self) -> None:
        self._pool.retire(self._member)
        self._pool.release(self._member)


class OwnSeat:
    """A supervisor that was made for the job alone."""

    def __init__(self, supervisors: Supervisors, actor: Any) -> None:
        self._supervisors = supervisors
        self._actor = actor
        self.call = Supervisor(actor).call

    async def run(self, epoch: int, order: dict[str, Any]) -> dict[str, Any]:
        outcome: dict[str, Any] = await self.call("run", epoch, order)
        return outcome

    def lost(self) -> None:
        """Nothing is left to do."""

    async def release(self, attempt: str) -> None:
        await _release(self, [attempt])

    async def leave(self) -> None:
        await self._supervisors.end(self._actor)

    async def discard(self) -> None:
        await self.leave()


async def _release(seat: Seat, attempts: list[str]) -> None:
    """Have a supervisor forget attempts, or do that for one of this node that is dead."""
    if not await farewell(seat.call("release", attempts)):
        await asyncio.to_thread(forget_ended, attempts)


class Found(NamedTuple):
    """A supervisor of the pool that an earlier manager made."""

    supervisor: Supervisor
    attempts: list[str]
    is_current: bool  #: Of this version. One of another is given no further job.


class PooledSupervisors:
    """Makes supervisors for the pool (see `pool.Maker`), and finds those of an earlier manager.

    `on_superseded` is called when a new one obeys a later manager already.
    """

    def __init__(
        self, supervisors: Supervisors, epoch: int, on_superseded: Callable[[], None]
    ) -> None:
        self._supervisors = supervisors
        self._epoch = epoch
        self._on_superseded = on_superseded

    async def make(self) -> Supervisor:
        actor = await self._supervisors.create_pooled()
        try:
            await patiently(functools.partial(Supervisor(actor).call, "describe", self._epoch))
            return await self._connected(actor)
        except Superseded:  # it is the later one's now
            self._on_superseded()
            raise
        except BaseException:
            await self._supervisors.end(actor)
            raise

    async def _connected(self, actor: Any) -> Supervisor:
        """Connect to a supervisor that lives. It is called as an actor where that can't be."""
        try:
            name = await patiently(actor.open_channel.remote)
            with short_path(work_dir(), name) as path:
                channel = await Channel.connect(path)
        except DIED:
            raise
        except Exception as error:  # noqa: BLE001 - an older version's has no channel at all
            logger.warning("There is no channel to a supervisor: %s", error)
            return Supervisor(actor)
        finally:  # also of one that has died meanwhile
            forget_channel(_ray.actor_id(actor))
        return Supervisor(actor, channel)

    async def end(self, handle: Supervisor) -> None:
        handle.hang_up()
        await self._supervisors.end(handle.actor)

    async def death(self, handle: Supervisor) -> None:
        try:
            await patiently(handle.actor.hold.remote)
        except RayError as error:
            logger.info("A supervisor of the pool is gone: %s", error)

    async def find(self, names: Sequence[str], live: list[str]) -> list[Found]:
        """Return the supervisors of an earlier manager that live; they obey this one then.

        Those that haven't come to life are ended: nobody knows when they would, or whether.

        Args:
            live: The attempts that have been recorded as running.

        Raises what keeps it from finding all; nothing is left of the search then.
        """
        unborn = await self._supervisors.unborn() if names else set()

        async def find(name: str) -> Found | None:
            actor = await self._supervisors.find_pooled(name)
            if actor is None:
                return None
            if _ray.actor_id(actor) in unborn:
                await self._supervisors.end(actor)
                return None
            try:
                async with timeout(TAKE_OVER_TIMEOUT_S):
                    return await self._introduce(actor, live, name.startswith(CURRENT_PREFIX))
            except DIED:
                return None
            except Superseded:
                raise
            except Exception as error:  # noqa: BLE001 - one that is broken doesn't stop the others
                # Its jobs live on without it, and are adopted by others.
                logger.warning("The supervisor %s doesn't answer; it is ended: %s", name, error)
                await self._supervisors.end(actor)
                return None

        answers = await asyncio.gather(*(find(name) for name in names), return_exceptions=True)
        found = [each for each in answers if isinstance(each, Found)]
        for answer in answers:
            if isinstance(answer, BaseException):
                for each in found:
                    each.supervisor.hang_up()
                raise answer
        return found

    async def _introduce(self, actor: Any, live: list[str], is_current: bool) -> Found:
        """Become the manager of a supervisor."""
        describe = functools.partial(Supervisor(actor).call, "describe", self._epoch, live)
        place = await patiently(describe)
        return Found(await self._connected(actor), place["attempts"], is_current)
