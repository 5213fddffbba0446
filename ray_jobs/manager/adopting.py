"""Adopting: finding a supervisor for a job that runs already, as often and as long as that takes.

Supervisors die, and on a node whose disk is full, say, Ray can't start another. The job runs on
meanwhile: nothing but the end of its node makes the manager give it up.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math

from ray.exceptions import RayError

from ray_jobs.kv import Superseded
from ray_jobs.manager.calls import GONE, brief, patiently
from ray_jobs.manager.failures import JobLost, NeverStarted
from ray_jobs.manager.leads import Lead, Services
from ray_jobs.manager.placing import Placing
from ray_jobs.manager.recovery import until_done
from ray_jobs.manager.seats import PooledSeat
from ray_jobs.records import JobRecord
from ray_jobs.supervisor.node import attempt_path, is_claimed

logger = logging.getLogger(__name__)

NODE_IS_GONE = "the node on which it ran is gone."


class NotThereError(RuntimeError):
    """A supervisor is on another node than the attempt."""


class Adopting:
    """Gives running jobs other supervisors."""

    def __init__(self, services: Services, placing: Placing) -> None:
        self._services = services
        self._placing = placing

    async def resume(self, lead: Lead, record: JobRecord) -> None:
        """Find the supervisor of a job that an earlier manager led, or another one, as `adopt`."""
        if lead.seat is None:
            await until_done(functools.partial(self._placing.find_own, lead))
            await self._check_place(lead, record)
        await self.adopt(lead, record, math.inf)

    async def _check_place(self, lead: Lead, record: JobRecord) -> None:
        """Take a supervisor that was found from the job unless it is where the attempt is.

        A manager that was about to be replaced may have made it, on any node: it would say of an
        attempt that runs elsewhere that it never began.
        """
        seat = lead.seat
        if seat is None:
            return
        try:
            epoch = self._services.journal.epoch
            where = await patiently(functools.partial(seat.call, "describe", epoch))
            if where["node_id"] != record.driver_node_id:
                raise NotThereError(where["node_id"])
        except Superseded:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the job runs on
            logger.info("Another supervisor is needed for %s: %s", lead.submission_id, brief(error))
            await unseat(lead, error)

    async def adopt(self, lead: Lead, record: JobRecord, lived_s: float) -> None:
        """Have the job's supervisor take over its attempt; a new one if that has died.

        Args:
            lived_s: For how long its last supervisor had the job, in seconds.

        Raises:
            NeverStarted: The node makes sure that the attempt is never started.
            JobLost: The node is gone.
            Superseded: Another manager has taken over.
        """
        while True:
            await asyncio.sleep(lead.pauses.after(lived_s))
            lived_s = 0.0
            try:
                await self._try(lead, record)
                return
            except (NeverStarted, JobLost, Superseded):
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the job runs on
                logger.info("%s isn't adopted yet: %s", lead.submission_id, brief(error))
                await unseat(lead, error)

    async def _try(self, lead: Lead, record: JobRecord) -> None:
        node_is_gone = lead.seat is None and await self._seat(lead, record)
        assert lead.seat is not None
        # With a stop that was requested meanwhile, once it is recorded (rule 2).
        await self._services.journal.written(lead.submission_id)
        newest = self._services.journal.get(lead.submission_id) or record
        order = self._services.supervisors.order(newest)
        epoch = self._services.journal.epoch
        status = await patiently(functools.partial(lead.seat.call, "adopt", epoch, order))
        if status["state"] == "unknown":
            raise NeverStarted
        if node_is_gone and status["state"] == "lost":
            raise JobLost(NODE_IS_GONE)

    async def _seat(self, lead: Lead, record: JobRecord) -> bool:
        """Give the job a supervisor where its attempt is. Returns whether its node is gone."""
        services = self._services
        on_this_node = record.driver_node_id == services.node_id
        node_is_gone = not on_this_node and not await services.node_lives(
            record.driver_node_id or ""
        )
        # This head may be the one that is gone, started again: it knows the end then.
        if on_this_node or (node_is_gone and is_claimed(attempt_path(record.attempt))):
            lead.seat = PooledSeat(services.pool, await services.pool.acquire(first=True))
        elif node_is_gone:
            raise JobLost(NODE_IS_GONE)
        else:
            await self._placing.give(lead, services.supervisors.create_adopter(record))
        return node_is_gone


async def unseat(lead: Lead, error: Exception | None) -> None:
    """Take a supervisor from a job that it fails by an error; None: it doesn't answer."""
    seat, lead.seat = lead.seat, None
    if seat is None:
        return
    if isinstance(error, GONE):
        seat.lost()
        return
    try:
        await (seat.discard() if error is None else seat.leave())
    except RayError as trouble:
        logger.warning("A supervisor can't be ended: %s", brief(trouble))
