"""The runner: leads each job from PENDING to its end, one task per live job.

Nothing here polls: a task awaits its supervisor, whose death Ray reports to the awaiter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ray.exceptions import RayError, RayTaskError

from ray_jobs.kv import Superseded
from ray_jobs.manager import transitions
from ray_jobs.manager.adopting import Adopting, unseat
from ray_jobs.manager.calls import GONE, brief, farewell, patiently
from ray_jobs.manager.environments import Built, package_uris
from ray_jobs.manager.failures import JobLost, NeverStarted, explained
from ray_jobs.manager.leads import Lead, Services
from ray_jobs.manager.placing import MAX_PLACEMENTS, Placing
from ray_jobs.manager.pool import Member
from ray_jobs.manager.recovery import until_done
from ray_jobs.manager.seats import OwnSeat, PooledSeat
from ray_jobs.manager.times import by_our_clocks, now_ms
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import JobRecord
from ray_jobs.scrubbing import scrubbed, secret_values

logger = logging.getLogger(__name__)

#: How long a deletion waits for what the job's end has left to do.
LEAVING_PATIENCE_S = 10.0


class Runner:
    """Runs the jobs of a journal on supervisors."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._journal = services.journal
        self._placing = Placing(services)
        self._adopting = Adopting(services, self._placing)
        self._leads: dict[str, Lead] = {}
        self._errands: set[asyncio.Task[None]] = set()

    def run(self, submission_id: str) -> None:
        """Begin to lead a new job."""
        self._begin(Lead(submission_id, recovering=False))

    def lead_on(self, submission_id: str, member: Member | None) -> None:
        """Lead a job on that an earlier manager led.

        Args:
            member: The supervisor of the pool that has the job's attempt.
        """
        lead = Lead(submission_id, recovering=True)
        if member is not None:
            lead.seat = PooledSeat(self._services.pool, member)
        self._begin(lead)

    def _begin(self, lead: Lead) -> None:
        self._leads[lead.submission_id] = lead
        lead.task = asyncio.ensure_future(self._lead(lead))

    async def finished(self, submission_id: str) -> None:
        """Wait until an ended job has left nothing behind, its supervisor's name included."""
        lead = self._leads.get(submission_id)
        if lead is not None and lead.task is not None:
            await asyncio.wait([lead.task], timeout=LEAVING_PATIENCE_S)

    async def stop(self, submission_id: str) -> bool:
        """Request the end of a job. Returns whether it was live.

        Returns once the request is recorded, or the end that came before it.
        """
        record = self._journal.get(submission_id)
        if record is None or record.status.is_terminal():
            await self._journal.written(submission_id)
            return False
        if record.foreign:
            return await self._stop_foreign(submission_id)
        changed = await self._journal.update(
            submission_id, lambda each: transitions.stop_requested(each, now_ms(each))
        )
        if changed is None:  # another request, or the end, was first
            await self._journal.written(submission_id)
        lead = self._leads.get(submission_id)
        if lead is not None and lead.task is not None:
            if changed is not None and changed.status is JobStatus.STOPPED:
                lead.task.cancel()
            else:
                self._begin_errand(self._deliver_stop(lead))
        return True

    async def _stop_foreign(self, submission_id: str) -> bool:
        """Ask the supervisor of a job of Ray's own server. Ray's server records the end."""
        handle = await self._services.supervisors.find(submission_id)
        if handle is not None:
            handle.stop.remote()
        return handle is not None

    async def _deliver_stop(self, lead: Lead) -> None:
        """Hand a recorded stop to the supervisor, however long that fails."""
        try:
            await until_done(functools.partial(self._hand_stop, lead))
        except Superseded:
            self._journal.give_way()

    async def _hand_stop(self, lead: Lead) -> None:
        """Hand a recorded stop to the supervisor. One that comes later is told with its order."""
        record = self._journal.get(lead.submission_id)
        seat = lead.seat
        if self._leads.get(lead.submission_id) is not lead or record is None or seat is None:
            return
        if record.status is JobStatus.RUNNING and record.stop_requested:
            with contextlib.suppress(*GONE):
                await patiently(
                    lambda: seat.call("stop_attempt", self._journal.epoch, record.attempt)
                )

    def _begin_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # --- leading a job ------------------------------------------------------------------------

    async def _lead(self, lead: Lead) -> None:
        try:
            try:
                await self._lead_to_end(lead)
            except Superseded:
                raise
            except Exception as error:  # noqa: BLE001 - the job fails with its reason
                await self._fail(lead, error)
        except Superseded:
            self._journal.give_way()
        finally:
            await asyncio.shield(self._leave(lead))

    async def _leave(self, lead: Lead) -> None:
        """Give back what the job has, a supervisor that is being created too."""
        try:
            if lead.creation is not None:
                lead.seat = OwnSeat(self._services.supervisors, await lead.creation)
            elif lead.recovering and lead.seat is None:
                # It ended before the supervisor that an earlier manager made for it was found.
                await self._placing.find_own(lead)
        except Exception:  # noqa: BLE001 - who awaited it first has told of it
            lead.seat = None
        try:
            if lead.seat is not None:
                await lead.seat.leave()
        except RayError as error:
            logger.warning("A supervisor can't be ended: %s", brief(error))
        finally:
            self._services.pins.drop(lead.pinned)
            if self._leads.get(lead.submission_id) is lead:
                del self._leads[lead.submission_id]
        try:
            await self._let_env_go(lead)
        finally:
            self._services.on_end(lead.submission_id)

    async def _let_env_go(self, lead: Lead) -> None:
        held, lead.held_env = lead.held_env, None
        if held is not None:
            await self._services.environments.release(held)

    async def _lead_to_end(self, lead: Lead) -> None:
        record = self._record(lead.submission_id)
        pins = package_uris(record.runtime_env)
        if pins:
            lead.pinned = pins
            await self._services.pins.hold(pins)
        # What was held on another head is gone with that.
        if record.holds_env and record.driver_node_id == self._services.node_id:
            lead.held_env = record.runtime_env
        for _ in range(MAX_PLACEMENTS):
            record = self._record(lead.submission_id)
            try:
                await self._lead_attempt(lead)
                return
            except NeverStarted:
                begin_anew = functools.partial(transitions.not_started, attempt=uuid.uuid4().hex)
                begun_anew = await self._update(lead, begin_anew)
                if begun_anew is None:
                    raise JobLost("its supervisor was lost before it was started.") from None
                if lead.seat is not None:
                    await lead.seat.release(record.attempt)
                    await lead.seat.leave()
                    lead.seat = None
                await self._let_env_go(lead)
                lead.recovering = False
        raise JobLost(f"its supervisor was lost {MAX_PLACEMENTS} times before it was started.")

    async def _lead_attempt(self, lead: Lead) -> None:
        record = self._record(lead.submission_id)
        built: Built | None = None
        if record.status is JobStatus.PENDING:
            built = await self._place(lead, record)
            if built is None:
                return
            record = self._record(lead.submission_id)
        else:
            await self._adopting.resume(lead, record)
        outcome = await self._await_end(lead, record, built)
        await self._update(lead, lambda each: transitions.concluded(each, outcome, now_ms(each)))
        if lead.seat is not None:
            await lead.seat.release(record.attempt)

    async def _place(self, lead: Lead, record: JobRecord) -> Built | None:
        """Bring the job to a living supervisor and record where. None if it ended meanwhile.

        Returns what the entrypoint needs of its environment.
        """
        place = await self._placing.place(lead, record)
        # The record, which it is for, waits for the KV as well.
        agent_address = await until_done(lambda: self._services.agent_address(place.node_id))
        placed = await self._update(
            lead,
            lambda each: transitions.running(
                each,
                node_id=place.node_id,
                agent_address=agent_address,
                on_head=place.on_head,
                log_base_bytes=0 if place.on_head else self._services.logs.size(lead.submission_id),
                holds_env=lead.held_env is not None,
            ),
        )
        return place.built if placed is not None else None

    async def _await_end(
        self, lead: Lead, record: JobRecord, built: Built | None
    ) -> dict[str, Any]:
        """Wait for the outcome, adopting the job as often as its supervisor dies.

        Args:
            built: The environment to start the entrypoint in, None if it has been started.
        """
        clock = asyncio.get_running_loop()
        while True:
            assert lead.seat is not None
            had_since = clock.time()
            if built is not None:
                # A stop that the order tells must be recorded first (rule 2).
                await self._journal.written(record.submission_id)
                order = self._services.supervisors.order(self._record(record.submission_id), built)
                call = functools.partial(lead.seat.run, self._journal.epoch, order)
            else:
                call = functools.partial(lead.seat.call, "wait", record.attempt)
            try:
                return await self._outcome(lead, record, call)
            except RayTaskError:  # it lives, and that is what it says
                raise
            except RayError as error:
                # It may have died before or after it started the job: adoption finds out.
                logger.info("Adopting %s: %s", lead.submission_id, error)
                await unseat(lead, error)
            built = None
            try:
                await self._adopting.adopt(lead, record, clock.time() - had_since)
            except (NeverStarted, JobLost):
                if lead.outcome is None:
                    raise
                # It had ended: only the rest of its log is gone.
                return {**lead.outcome, "log_disk_full": True}

    async def _outcome(
        self, lead: Lead, record: JobRecord, call: Callable[[], Awaitable[Any]]
    ) -> dict[str, Any]:
        """Wait for the end of an attempt, and of the copy of its log.

        Raises `NeverStarted`, and `GONE`: what `lead.outcome` has by then is the end.
        """
        seat = lead.seat
        assert seat is not None
        # The copy of the log may be whole much later.
        ended = asyncio.ensure_future(self._reported(lead, call))
        try:
            is_whole = record.on_head or await self._services.logs.copy_remote(record, seat, ended)
            outcome = await ended
            return outcome if is_whole else {**outcome, "log_disk_full": True}
        finally:
            ended.cancel()

    async def _reported(self, lead: Lead, call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        if lead.outcome is None:
            outcome = by_our_clocks(await patiently(call))
            # By an adopter, which may not start it, or a keeper that was killed before it did.
            if outcome["state"] == "unknown":
                raise NeverStarted
            lead.outcome = outcome
        return lead.outcome

    # --- ends -----------------------------------------------------------------------------------

    async def _fail(self, lead: Lead, error: Exception) -> None:
        record = self._journal.get(lead.submission_id)
        if record is None or record.status.is_terminal():
            return
        message, error_type = explained(error)
        # Who builds environments quotes URLs and commands, passwords and all.
        secrets = secret_values(record.runtime_env)
        if error_type is JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE:
            trace = scrubbed("".join(traceback.format_exception(error)), secrets)
            logger.error("Leading job %s failed.\n%s", lead.submission_id, trace)
        if record.status is JobStatus.RUNNING:
            await self._abandon(lead, record)
        message = scrubbed(message, secrets)
        # Before the record says that the job has ended: its log is complete then.
        self._services.logs.append(lead.submission_id, message + "\n")
        await self._update(
            lead,
            lambda each: transitions.failed(
                each, now_ms=now_ms(each), message=message, error_type=error_type
            ),
        )
        if lead.seat is not None and record.status is JobStatus.RUNNING:
            await lead.seat.release(record.attempt)

    async def _abandon(self, lead: Lead, record: JobRecord) -> None:
        """Have nothing of a job outlive it (rule 7): by an adopter if its supervisor is silent."""
        for _ in range(MAX_PLACEMENTS):
            if lead.seat is None:
                return
            call = lead.seat.call("abandon", self._journal.epoch, record.attempt)
            if await farewell(call):
                return
            await unseat(lead, None)
            try:
                await self._adopting.adopt(lead, record, 0.0)
            except (NeverStarted, JobLost):  # there is nothing, or nobody can reach it
                return
        logger.error("Job %s is given up, but may run on.", lead.submission_id)

    async def _update(
        self, lead: Lead, change: Callable[[JobRecord], JobRecord | None]
    ) -> JobRecord | None:
        """Change the job's record. No-op once the id may be another job's: nobody waits for ever.

        See `finished`. Returns the new record, None if nothing was changed.
        """

        def changed(record: JobRecord) -> JobRecord | None:
            is_ours = self._leads.get(lead.submission_id) is lead
            return change(record) if is_ours else None

        return await self._journal.update(lead.submission_id, changed)

    def _record(self, submission_id: str) -> JobRecord:
        record = self._journal.get(submission_id)
        if record is None:
            raise JobLost("its record is gone.")
        return record
