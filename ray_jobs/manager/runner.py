"""The runner: leads each job from PENDING to its end, one task per live job.

Nothing here polls: a task awaits its supervisor, whose death Ray reports to the awaiter.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
import uuid
from collections.abc import Coroutine
from typing import Any

from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    RayError,
    RuntimeEnvSetupError,
)

from ray_jobs import _ray
from ray_jobs.manager import transitions
from ray_jobs.manager.calls import brief, patiently
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.manager.supervisors import Supervisors
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import JobRecord

logger = logging.getLogger(__name__)

START_TIMEOUT_ENV_VAR = "RAY_JOB_START_TIMEOUT_SECONDS"
DEFAULT_START_TIMEOUT_S = 900.0
#: How often a job is given a new supervisor before it is given up.
MAX_PLACEMENTS = 3
MAX_ADOPTIONS = 20
#: How long a last call to a supervisor may take: its answer changes nothing any more.
FAREWELL_S = 10.0


class JobLost(Exception):
    """The job can't be reached any more."""


class NeverStarted(Exception):
    """The job's supervisor was lost before the entrypoint was started, and it never will be."""


class SupervisorNotCreated(Exception):
    """Ray refused what the job asks of it."""


class Lead:
    """The leading of one job by this manager."""

    def __init__(self, submission_id: str, recovering: bool) -> None:
        self.submission_id = submission_id
        #: An earlier manager may have begun to lead the job.
        self.recovering = recovering
        #: The job's supervisor, from the moment of its creation.
        self.handle: Any = None
        self.creation: asyncio.Future[Any] | None = None
        self.task: asyncio.Task[None] | None = None


def now_ms() -> int:
    return int(time.time() * 1000)


class Runner:
    """Runs the jobs of a journal on supervisors."""

    def __init__(
        self, journal: Journal, supervisors: Supervisors, logs: JobLogs, kv: _ray.Kv
    ) -> None:
        self._journal = journal
        self._supervisors = supervisors
        self._logs = logs
        self._kv = kv
        self._leads: dict[str, Lead] = {}
        self._errands: set[asyncio.Task[None]] = set()

    def run(self, submission_id: str, recovering: bool = False) -> None:
        """Begin to lead a job. `recovering`: an earlier manager may have begun."""
        lead = Lead(submission_id, recovering)
        self._leads[submission_id] = lead
        lead.task = asyncio.ensure_future(self._lead(lead))

    async def finished(self, submission_id: str) -> None:
        """Wait until an ended job has left nothing behind, its supervisor's name included."""
        lead = self._leads.get(submission_id)
        if lead is not None and lead.task is not None:
            await asyncio.wait([lead.task], timeout=FAREWELL_S)

    async def stop(self, submission_id: str) -> bool:
        """Request the end of a job. Returns whether it was live; the request is recorded then."""
        record = self._journal.get(submission_id)
        if record is None or record.status.is_terminal():
            return False
        if record.foreign:
            return await self._stop_foreign(submission_id)
        changed = await self._journal.update(
            submission_id, lambda each: transitions.stop_requested(each, now_ms())
        )
        lead = self._leads.get(submission_id)
        if lead is not None and lead.task is not None:
            if changed is not None and changed.status is JobStatus.STOPPED:
                lead.task.cancel()
            else:
                self._begin_errand(self._deliver_stop(lead))
        return True

    async def _stop_foreign(self, submission_id: str) -> bool:
        """Ask the supervisor of a job of Ray's own server. Ray's server records the end."""
        handle = await self._supervisors.find(submission_id)
        if handle is not None:
            handle.stop.remote()
        return handle is not None

    async def _deliver_stop(self, lead: Lead) -> None:
        """Hand a recorded stop to the supervisor, if it has the attempt by now."""
        record = self._journal.get(lead.submission_id)
        handle = lead.handle
        if record is None or handle is None or not record.stop_requested:
            return
        try:
            await patiently(lambda: handle.stop_attempt.remote(self._journal.epoch, record.attempt))
        except (RayError, KeyError) as error:
            # It died, or hasn't started the attempt yet: who starts or adopts it delivers this.
            logger.info("The stop of %s is delivered later: %s", lead.submission_id, brief(error))

    def _begin_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # --- leading a job ------------------------------------------------------------------------

    async def _lead(self, lead: Lead) -> None:
        submission_id = lead.submission_id
        try:
            await self._lead_to_end(lead)
        except RuntimeEnvSetupError as error:
            await self._fail(
                lead,
                f"runtime_env setup failed: {error}",
                JobErrorType.RUNTIME_ENV_SETUP_FAILURE,
            )
        except ActorUnschedulableError as error:
            await self._fail(
                lead,
                f"Job supervisor actor could not be scheduled: {error}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE,
            )
        except SupervisorNotCreated as error:
            await self._fail(
                lead,
                f"Failed to start supervisor actor {submission_id}: {error}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE,
            )
        except (ActorDiedError, JobLost) as error:
            await self._fail(
                lead,
                f"Job supervisor actor died: {error}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
            )
        except Exception as error:
            logger.exception("Leading job %s failed.", submission_id)
            await self._fail(
                lead,
                f"Unexpected error occurred: {brief(error)}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE,
            )
        finally:
            await asyncio.shield(self._leave(lead))

    async def _leave(self, lead: Lead) -> None:
        """End the job's supervisor, one that is being created too."""
        try:
            if lead.creation is not None:
                lead.handle = await lead.creation
        except Exception:  # noqa: BLE001 - who awaited it first has told of it
            lead.handle = None
        if lead.handle is not None:
            await self._supervisors.end(lead.handle)
        if self._leads.get(lead.submission_id) is lead:
            del self._leads[lead.submission_id]

    async def _give(self, lead: Lead, creation: Coroutine[Any, Any, Any]) -> None:
        """Give a job a new supervisor. One whose creation is interrupted isn't forgotten."""
        lead.creation = asyncio.ensure_future(creation)
        lead.handle = await asyncio.shield(lead.creation)
        lead.creation = None

    async def _lead_to_end(self, lead: Lead) -> None:
        for _ in range(MAX_PLACEMENTS):
            try:
                await self._lead_attempt(lead)
                return
            except NeverStarted:
                begin_anew = functools.partial(transitions.not_started, attempt=uuid.uuid4().hex)
                begun_anew = await self._journal.update(lead.submission_id, begin_anew)
                if begun_anew is None:
                    raise JobLost("its supervisor was lost before it was started.") from None
                lead.handle = None
                lead.recovering = False
        raise JobLost(f"its supervisor was lost {MAX_PLACEMENTS} times before it was started.")

    async def _lead_attempt(self, lead: Lead) -> None:
        record = self._record(lead.submission_id)
        if record.status is JobStatus.PENDING:
            started = await self._place(lead, record)
            if started is None:
                return
            record = started
            await self._start(lead, record)
        else:
            await self._resume(lead, record)
        outcome = await self._await_end(lead, record)
        await self._journal.update(
            lead.submission_id, lambda each: transitions.concluded(each, outcome, now_ms())
        )
        if outcome["state"] != "lost":
            await self._farewell(lead.handle.release.remote(record.attempt))

    async def _place(self, lead: Lead, record: JobRecord) -> JobRecord | None:
        """Bring a supervisor to life and record where. None if the job ended meanwhile."""
        timeout_s = start_timeout_s()
        waited_s = max(0.0, (now_ms() - (record.start_time or now_ms())) / 1000)
        left_s = max(1.0, timeout_s - waited_s) if lead.recovering else timeout_s
        try:
            place = await asyncio.wait_for(self._living_supervisor(lead, record), left_s)
        except asyncio.TimeoutError:
            await self._fail(
                lead,
                start_timeout_message(record, timeout_s),
                JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT,
            )
            return None
        agent_address = await _ray.agent_http_address(self._kv, place["node_id"])
        return await self._journal.update(
            lead.submission_id,
            lambda each: transitions.running(
                each,
                node_id=place["node_id"],
                agent_address=agent_address,
                on_head=place["head_token"] == self._logs.head_token,
                log_base_bytes=self._logs.size(lead.submission_id),
            ),
        )

    async def _living_supervisor(self, lead: Lead, record: JobRecord) -> dict[str, str]:
        """Give the job a supervisor and wait until it lives. Returns where.

        Nothing of the job runs yet: one that is killed meanwhile is simply replaced.
        """
        if lead.recovering:
            lead.handle = await self._supervisors.find(lead.submission_id)
        for placement in range(1, MAX_PLACEMENTS + 1):
            if lead.handle is None:
                try:
                    log_path = self._logs.path(lead.submission_id)
                    await self._give(lead, self._supervisors.create(record, log_path))
                except Exception as error:
                    raise SupervisorNotCreated(brief(error)) from error
            handle = lead.handle
            try:
                place: dict[str, str] = await patiently(
                    functools.partial(handle.describe.remote, self._journal.epoch)
                )
                return place
            except ActorDiedError as error:
                if placement == MAX_PLACEMENTS:
                    raise
                logger.info("Placing %s again: %s", lead.submission_id, error)
                lead.handle = None
        raise AssertionError("unreachable")

    async def _start(self, lead: Lead, record: JobRecord) -> None:
        order = self._supervisors.order(record)
        try:
            status = await patiently(lambda: lead.handle.start.remote(self._journal.epoch, order))
            if status["state"] == "unknown":  # by an adopter, which may not start it
                raise NeverStarted
        except ActorDiedError:
            # It may have died before or after it started the job: adoption finds out.
            await self._adopt(lead, record)
        await self._deliver_stop(lead)

    async def _resume(self, lead: Lead, record: JobRecord) -> None:
        """Find the supervisor of a job that an earlier manager recorded as running."""
        lead.handle = await self._supervisors.find(lead.submission_id)
        if lead.handle is None:
            await self._adopt(lead, record)
            await self._deliver_stop(lead)
        else:
            # Starts the attempt if the earlier manager didn't come to it; attaches otherwise.
            await self._start(lead, record)

    async def _adopt(self, lead: Lead, record: JobRecord) -> None:
        """Have a new supervisor take over a running attempt whose own one died."""
        order = self._supervisors.order(record)
        for adoption in range(1, MAX_ADOPTIONS + 1):
            await self._give(lead, self._supervisors.create_adopter(record))
            try:
                status = await patiently(
                    lambda: lead.handle.adopt.remote(self._journal.epoch, order)
                )
            except ActorUnschedulableError:
                raise JobLost("the node on which it ran is gone.") from None
            except ActorDiedError:
                if adoption == MAX_ADOPTIONS:
                    raise
                continue
            if status["state"] == "unknown":
                raise NeverStarted
            return

    async def _await_end(self, lead: Lead, record: JobRecord) -> dict[str, Any]:
        """Wait for the outcome, adopting the job as often as its supervisor dies."""
        for _ in range(MAX_ADOPTIONS):
            try:
                return await self._outcome(lead.handle, record)
            except ActorDiedError as error:
                logger.info("Adopting %s: %s", lead.submission_id, error)
            await self._adopt(lead, record)
            await self._deliver_stop(lead)
        raise JobLost(f"its supervisor died {MAX_ADOPTIONS} times.")

    async def _outcome(self, handle: Any, record: JobRecord) -> dict[str, Any]:
        """Wait for the end of an attempt, and of the copy of its log."""
        ended = asyncio.ensure_future(patiently(lambda: handle.wait.remote(record.attempt)))
        try:
            if not record.on_head:
                await self._logs.copy_remote(record, handle, ended)
            outcome: dict[str, Any] = await ended
            return outcome
        finally:
            ended.cancel()

    # --- ends -----------------------------------------------------------------------------------

    async def _fail(self, lead: Lead, message: str, error_type: JobErrorType) -> None:
        record = self._journal.get(lead.submission_id)
        if record is None or record.status.is_terminal():
            return
        if record.status is JobStatus.RUNNING and lead.handle is not None:
            # Nothing that it started may outlive the job (rule 7).
            await self._farewell(lead.handle.abandon.remote(record.attempt))
        # Before the record says that the job has ended: its log is complete then.
        self._logs.append(lead.submission_id, message + "\n")
        await self._journal.update(
            lead.submission_id,
            lambda each: transitions.failed(
                each, now_ms=now_ms(), message=message, error_type=error_type
            ),
        )

    async def _farewell(self, call: Any) -> None:
        """Await a last call to a supervisor, for a while: it may be gone already."""
        try:
            await asyncio.wait_for(call, FAREWELL_S)
        except (RayError, asyncio.TimeoutError) as error:
            logger.info("A supervisor didn't answer the last call: %s", brief(error))

    def _record(self, submission_id: str) -> JobRecord:
        record = self._journal.get(submission_id)
        if record is None:
            raise JobLost("its record is gone.")
        return record


def start_timeout_s() -> float:
    """Return how long a job may stay PENDING, in seconds, by Ray's variable for it."""
    text = os.environ.get(START_TIMEOUT_ENV_VAR)
    try:
        return float(text) if text else DEFAULT_START_TIMEOUT_S
    except ValueError:
        logger.warning("%s=%s is not a number.", START_TIMEOUT_ENV_VAR, text)
        return DEFAULT_START_TIMEOUT_S


def start_timeout_message(record: JobRecord, timeout_s: float) -> str:
    message = (
        f"Job supervisor actor failed to start within {timeout_s:g} seconds. This timeout can be"
        f" configured by setting the environment variable {START_TIMEOUT_ENV_VAR}."
    )
    if record.reserves_resources():
        message += (
            " The job was waiting for resources: the cluster may not have what its entrypoint asks"
            " for. See `ray status`, and ask for less (entrypoint_num_cpus, entrypoint_num_gpus,"
            " entrypoint_memory, entrypoint_resources)."
        )
    return message
