"""Placing: finding a living supervisor for a job that is to start."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Coroutine
from typing import Any

from ray_jobs.claims import VERSION
from ray_jobs.manager.calls import DIED, brief, patiently
from ray_jobs.manager.environments import Built, NeedsOwnSupervisor
from ray_jobs.manager.failures import StartTimeout, SupervisorNotCreated, start_timeout_s
from ray_jobs.manager.leads import Lead, Services
from ray_jobs.manager.pool import Member
from ray_jobs.manager.seats import OwnSeat, PooledSeat
from ray_jobs.manager.supervisors import IN_ITS_ENVIRONMENT, needs_own_supervisor
from ray_jobs.manager.times import waited_s
from ray_jobs.records import JobRecord
from ray_jobs.timeouts import timeout

logger = logging.getLogger(__name__)

#: How often a job is given a new supervisor before it is given up.
MAX_PLACEMENTS = 3


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a job may start. Its supervisor is in the lead."""

    node_id: str
    on_head: bool  #: Its log is written on the head.
    built: Built  #: What the entrypoint needs of the job's environment.


class Placing:
    """Gives jobs their supervisors: one of the pool, or one of their own."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def place(self, lead: Lead, record: JobRecord) -> Place:
        """Give the job a supervisor that lives.

        Raises:
            StartTimeout: There was none in time. Waiting for others to end doesn't count.
            Exception: What keeps the job from being placed (see `failures.explained`).
        """
        timeout_s = start_timeout_s()
        if not await self._needs_own(lead, record):
            log_path = self._services.logs.path(lead.submission_id)
            build = self._services.environments.build(record, log_path)
            try:
                built = await in_time(build, record, timeout_s)
            except NeedsOwnSupervisor:
                logger.info("Job %s gets a supervisor of its own.", lead.submission_id)
            else:
                if built.is_held:
                    lead.held_env = record.runtime_env
                member = await self._member(record, timeout_s)
                lead.seat = PooledSeat(self._services.pool, member)
                return Place(self._services.node_id, True, built)
        left_s = max(1.0, timeout_s - waited_s(record)) if lead.recovering else timeout_s
        where = await in_time(self._own_supervisor(lead, record), record, left_s)
        on_head = (
            where["node_id"] == self._services.node_id
            or where["head_token"] == self._services.logs.head_token
        )
        return Place(where["node_id"], on_head, IN_ITS_ENVIRONMENT)

    async def give(self, lead: Lead, creation: Coroutine[Any, Any, Any]) -> None:
        """Give a job a supervisor of its own. One whose creation is interrupted isn't forgotten."""
        lead.creation = asyncio.ensure_future(creation)
        try:
            actor = await asyncio.shield(lead.creation)
        except asyncio.CancelledError:
            raise
        except Exception:
            lead.creation = None
            raise
        lead.seat = OwnSeat(self._services.supervisors, actor)
        lead.creation = None

    async def find_own(self, lead: Lead) -> bool:
        """Give the job the supervisor that an earlier manager made for it, if there is one."""
        found = await self._services.supervisors.find(lead.submission_id)
        if found is not None:
            lead.seat = OwnSeat(self._services.supervisors, found)
        return found is not None

    # --- inside -----------------------------------------------------------------------------

    async def _needs_own(self, lead: Lead, record: JobRecord) -> bool:
        if needs_own_supervisor(record):
            return True
        if not lead.recovering:
            return False
        # An earlier manager may have made one, which would be left behind.
        return await self.find_own(lead)

    async def _member(self, record: JobRecord, timeout_s: float) -> Member:
        """Return a supervisor of the pool, which may have many jobs to serve before."""
        pool = self._services.pool
        waiting = asyncio.ensure_future(pool.acquire())
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=timeout_s)
                if not waiting.done() and pool.stalled_for_s() >= timeout_s:
                    raise StartTimeout(record, timeout_s)
            return waiting.result()
        except BaseException:
            if not waiting.cancel():  # it has one already, which the job will not take
                pool.release(waiting.result())
            raise

    async def _own_supervisor(self, lead: Lead, record: JobRecord) -> dict[str, Any]:
        """Give the job a supervisor of its own and wait until it lives. Returns where.

        Nothing of the job runs yet: one that is killed meanwhile is simply replaced.
        """
        supervisors = self._services.supervisors
        epoch = self._services.journal.epoch
        if lead.recovering and lead.seat is None:
            await self.find_own(lead)
        found, deaths = lead.seat, 0
        while True:
            if lead.seat is None:
                try:
                    log_path = self._services.logs.path(lead.submission_id)
                    await self.give(lead, supervisors.create(record, log_path))
                except Exception as error:
                    raise SupervisorNotCreated(brief(error)) from error
            assert lead.seat is not None
            try:
                where: dict[str, Any] = await patiently(
                    functools.partial(lead.seat.call, "describe", epoch)
                )
            except DIED as error:
                deaths += 1
                if deaths == MAX_PLACEMENTS:
                    raise
                logger.info("Placing %s again: %s", lead.submission_id, error)
                lead.seat = None
                continue
            # One of an earlier version doesn't say. It may not know what this one orders.
            if lead.seat is not found or where.get("version") == VERSION:
                return where
            logger.info("The supervisor of %s is of another version.", lead.submission_id)
            await lead.seat.leave()
            lead.seat = None


async def in_time(step: Coroutine[Any, Any, Any], record: JobRecord, timeout_s: float) -> Any:
    """Await a step of a job's start. Raises `StartTimeout`."""
    try:
        async with timeout(timeout_s):
            return await step
    except asyncio.TimeoutError:
        raise StartTimeout(record, timeout_s) from None
