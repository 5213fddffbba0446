"""The runner: leads each job from PENDING to its end, one task per live job.

Nothing here polls: a task awaits its supervisor, whose death Ray reports to the awaiter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    RayError,
    RuntimeEnvSetupError,
)

from ray_jobs import _ray
from ray_jobs.manager import transitions
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.manager.supervisors import Supervisors
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import JobRecord

logger = logging.getLogger(__name__)

START_TIMEOUT_ENV_VAR = "RAY_JOB_START_TIMEOUT_SECONDS"
DEFAULT_START_TIMEOUT_S = 900.0
#: How often a running job is adopted anew before it is given up.
MAX_ADOPTIONS = 20
UNAVAILABLE_RETRY_S = 0.2


class JobLost(Exception):
    """The job can't be reached any more."""


class SupervisorNotCreated(Exception):
    """Ray refused what the job asks of it."""


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
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: The actors of live jobs, from the moment of their creation.
        self._handles: dict[str, Any] = {}

    def run(self, submission_id: str, recovering: bool = False) -> None:
        """Begin to lead a job. `recovering`: an earlier manager may have begun."""
        task = asyncio.ensure_future(self._lead(submission_id, recovering))
        self._tasks[submission_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(submission_id, None))

    async def stop(self, submission_id: str) -> bool:
        """Request the end of a job. Returns whether it was live; the request is recorded then."""
        record = self._journal.get(submission_id)
        if record is None or record.status.is_terminal():
            return False
        if record.foreign:
            return self._stop_foreign(submission_id)
        changed = await self._journal.update(
            submission_id, lambda each: transitions.stop_requested(each, now_ms())
        )
        if changed is not None and changed.status is JobStatus.STOPPED:
            task = self._tasks.get(submission_id)
            if task is not None:
                task.cancel()
            self._kill(submission_id)
            return True
        await self._deliver_stop(submission_id)
        return True

    def _stop_foreign(self, submission_id: str) -> bool:
        """Ask the supervisor of a job of Ray's own server. Ray's server records the end."""
        handle = self._supervisors.find(submission_id)
        if handle is not None:
            handle.stop.remote()
        return handle is not None

    async def _deliver_stop(self, submission_id: str) -> None:
        """Hand a recorded stop to the supervisor, if it has the attempt by now."""
        record = self._journal.get(submission_id)
        handle = self._handles.get(submission_id)
        if record is None or handle is None or not record.stop_requested:
            return
        try:
            await handle.stop_attempt.remote(self._journal.epoch, record.attempt)
        except (RayError, KeyError) as error:
            # The supervisor died or hasn't started it yet: whoever leads the job tells the next.
            logger.info("The stop of %s is delivered later: %s", submission_id, error)

    async def _lead(self, submission_id: str, recovering: bool) -> None:
        try:
            await self._lead_to_end(submission_id, recovering)
        except asyncio.CancelledError:
            raise
        except RuntimeEnvSetupError as error:
            await self._fail(
                submission_id,
                f"runtime_env setup failed: {error}",
                JobErrorType.RUNTIME_ENV_SETUP_FAILURE,
            )
        except ActorUnschedulableError as error:
            await self._fail(
                submission_id,
                f"Job supervisor actor could not be scheduled: {error}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE,
            )
        except SupervisorNotCreated as error:
            await self._fail(
                submission_id,
                f"Failed to start supervisor actor {submission_id}: {error}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE,
            )
        except (ActorDiedError, JobLost) as error:
            await self._fail(
                submission_id,
                f"Job supervisor actor died: {error}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
            )
        except Exception as error:
            logger.exception("Leading job %s failed.", submission_id)
            await self._fail(
                submission_id,
                f"Unexpected error occurred: {brief(error)}",
                JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE,
            )
        finally:
            self._kill(submission_id)

    async def _lead_to_end(self, submission_id: str, recovering: bool) -> None:
        record = self._record(submission_id)
        if record.status is JobStatus.PENDING:
            started = await self._place(record, recovering)
            if started is None:
                return
            record = started
            handle = self._handles[submission_id]
            await self._start(handle, record)
        else:
            handle = await self._resume(record)
        outcome = await self._await_end(record, handle)
        await self._journal.update(
            submission_id, lambda each: transitions.concluded(each, outcome, now_ms())
        )
        handle = self._handles.get(submission_id, handle)
        if outcome["state"] != "lost":
            await self._release(handle, record)

    async def _place(self, record: JobRecord, recovering: bool) -> JobRecord | None:
        """Bring a supervisor to life and record where. None if the job was stopped meanwhile."""
        submission_id = record.submission_id
        handle = self._supervisors.find(submission_id) if recovering else None
        if handle is None:
            try:
                handle = self._supervisors.create(record, self._logs.path(submission_id))
            except Exception as error:
                raise SupervisorNotCreated(brief(error)) from error
        self._handles[submission_id] = handle
        timeout_s = start_timeout_s()
        waited_s = max(0.0, (now_ms() - (record.start_time or now_ms())) / 1000)
        try:
            place = await asyncio.wait_for(
                patiently(lambda: handle.describe.remote(self._journal.epoch)),
                max(1.0, timeout_s - waited_s) if recovering else timeout_s,
            )
        except asyncio.TimeoutError:
            await self._fail(
                submission_id,
                start_timeout_message(record, timeout_s),
                JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT,
            )
            return None
        node_id = place["node_id"]
        agent_address = await _ray.agent_http_address(self._kv, node_id)
        return await self._journal.update(
            submission_id,
            lambda each: transitions.running(
                each,
                node_id=node_id,
                agent_address=agent_address,
                on_head=place["head_token"] == self._logs.head_token,
                log_base_bytes=self._logs.size(submission_id),
            ),
        )

    async def _start(self, handle: Any, record: JobRecord) -> None:
        order = self._supervisors.order(record)
        try:
            await patiently(lambda: handle.start.remote(self._journal.epoch, order))
        except ActorDiedError:
            # It may have died before or after it started the job: adoption finds out.
            handle = await self._adopt(record)
        await self._deliver_stop(record.submission_id)

    async def _resume(self, record: JobRecord) -> Any:
        """Find the supervisor of a job that an earlier manager recorded as running."""
        handle = self._supervisors.find(record.submission_id)
        if handle is not None:
            self._handles[record.submission_id] = handle
            order = self._supervisors.order(record)
            try:
                # Starts the attempt if the earlier manager didn't come to it; attaches otherwise.
                await patiently(lambda: handle.start.remote(self._journal.epoch, order))
                await self._deliver_stop(record.submission_id)
                return handle
            except ActorDiedError:
                logger.info("The supervisor of %s died meanwhile.", record.submission_id)
        return await self._adopt(record)

    async def _adopt(self, record: JobRecord) -> Any:
        """Have a new supervisor take over a running attempt whose own one died."""
        handle = self._supervisors.create_adopter(record)
        self._handles[record.submission_id] = handle
        order = self._supervisors.order(record)
        status = await patiently(lambda: handle.adopt.remote(self._journal.epoch, order))
        if status["state"] == "unknown":
            raise JobLost("its supervisor was lost before the entrypoint was started.")
        await self._deliver_stop(record.submission_id)
        return handle

    async def _await_end(self, record: JobRecord, handle: Any) -> dict[str, Any]:
        """Wait for the outcome, adopting the job as often as its supervisor dies."""
        for _ in range(MAX_ADOPTIONS):
            handle = self._handles.get(record.submission_id, handle)
            try:
                ended = patiently(lambda handle=handle: handle.wait.remote(record.attempt))
                outcome: dict[str, Any]
                if record.on_head:
                    outcome = await ended
                else:
                    copied = self._logs.copy_remote(record, handle)
                    outcome, _ = await asyncio.gather(ended, copied)
                return outcome
            except ActorDiedError as error:
                logger.info("Adopting %s: %s", record.submission_id, error)
            await self._adopt(record)
        raise JobLost(f"its supervisor died {MAX_ADOPTIONS} times.")

    async def _release(self, handle: Any, record: JobRecord) -> None:
        try:
            await handle.release.remote(record.attempt)
        except RayError as error:
            logger.info("Releasing %s: %s", record.submission_id, error)

    async def _fail(self, submission_id: str, message: str, error_type: JobErrorType) -> None:
        # Before the record says that the job has ended: its log is complete then.
        record = self._journal.get(submission_id)
        if record is not None and not record.status.is_terminal():
            self._logs.append(submission_id, message + "\n")
        await self._journal.update(
            submission_id,
            lambda each: transitions.finished(
                each,
                status=JobStatus.FAILED,
                now_ms=now_ms(),
                message=message,
                error_type=error_type,
            ),
        )

    def _record(self, submission_id: str) -> JobRecord:
        record = self._journal.get(submission_id)
        if record is None:
            raise JobLost("its record is gone.")
        return record

    def _kill(self, submission_id: str) -> None:
        handle = self._handles.pop(submission_id, None)
        if handle is not None:
            ray.kill(handle, no_restart=True)


def brief(error: BaseException) -> str:
    """Return what went wrong without the traceback that Ray puts around it."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}"


async def patiently(call: Any) -> Any:
    """Await an actor call, and repeat it while the actor is unreachable but not dead.

    Only for calls that may run twice.
    """
    while True:
        try:
            answer: Awaitable[Any] = call()
            return await answer
        except ActorUnavailableError:
            # There is no event for an actor that becomes reachable again.
            await asyncio.sleep(UNAVAILABLE_RETRY_S)


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
