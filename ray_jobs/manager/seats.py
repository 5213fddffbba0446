"""Seats: the supervisor that a job has, one of the pool's or one of its own."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any, Protocol

from ray.exceptions import ActorDiedError, RayError

from ray_jobs.manager.calls import farewell, patiently
from ray_jobs.manager.pool import Member, Pool
from ray_jobs.manager.supervisors import Supervisors

logger = logging.getLogger(__name__)


class Seat(Protocol):
    """A job's supervisor, for as long as the job has it."""

    handle: Any

    def lost(self) -> None:
        """It is dead."""

    async def release(self, attempt: str) -> None:
        """How the attempt ended has been recorded: its report isn't needed any more."""

    async def leave(self) -> None:
        """The job doesn't need it any more."""


class PooledSeat:
    """A supervisor of the pool."""

    def __init__(self, pool: Pool, member: Member) -> None:
        self.handle = member.handle
        self._pool = pool
        self._member = member

    def lost(self) -> None:
        self._pool.bury(self._member)
        self._pool.release(self._member)

    async def release(self, attempt: str) -> None:
        # Not awaited: nothing depends on it, and the next job may come at once.
        self.handle.release.remote(attempt)

    async def leave(self) -> None:
        self._pool.release(self._member)


class OwnSeat:
    """A supervisor that was made for the job alone."""

    def __init__(self, supervisors: Supervisors, handle: Any) -> None:
        self.handle = handle
        self._supervisors = supervisors

    def lost(self) -> None:
        """Nothing is left to do."""

    async def release(self, attempt: str) -> None:
        await farewell(self.handle.release.remote(attempt))

    async def leave(self) -> None:
        await self._supervisors.end(self.handle)


class PooledSupervisors:
    """Makes supervisors for the pool (see `pool.Maker`), and finds those of an earlier manager."""

    def __init__(self, supervisors: Supervisors, epoch: int) -> None:
        self._supervisors = supervisors
        self._epoch = epoch

    async def make(self) -> Any:
        handle = await self._supervisors.create_pooled()
        await patiently(functools.partial(handle.describe.remote, self._epoch))
        return handle

    async def end(self, handle: Any) -> None:
        await self._supervisors.end(handle)

    async def death(self, handle: Any) -> None:
        try:
            await patiently(handle.hold.remote)
        except RayError as error:
            logger.info("A supervisor of the pool is gone: %s", error)

    async def take_over(self, pool: Pool, names: list[str], live: list[str]) -> dict[str, Member]:
        """Have supervisors of an earlier manager join the pool.

        Args:
            live: The attempts that have been recorded as running.

        Returns:
            The supervisor of each attempt that has one.
        """
        found: dict[str, Member] = {}

        async def take(name: str) -> None:
            handle = await self._supervisors.find_pooled(name)
            if handle is None:
                return
            try:
                place = await patiently(
                    functools.partial(handle.describe.remote, self._epoch, live)
                )
            except ActorDiedError:
                return
            member = pool.join(handle, len(place["attempts"]))
            found.update(dict.fromkeys(place["attempts"], member))

        await asyncio.gather(*(take(name) for name in names))
        return found
