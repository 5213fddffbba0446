"""Why a job fails without its entrypoint having failed, and in which words that is told."""

from __future__ import annotations

import logging
import os

from ray.exceptions import ActorUnschedulableError, RuntimeEnvSetupError

from ray_jobs.manager.calls import DIED, brief
from ray_jobs.manager.environments import EnvironmentFailed
from ray_jobs.models import JobErrorType
from ray_jobs.records import JobRecord

logger = logging.getLogger(__name__)

START_TIMEOUT_ENV_VAR = "RAY_JOB_START_TIMEOUT_SECONDS"
DEFAULT_START_TIMEOUT_S = 900.0


class JobLost(Exception):
    """The job can't be reached any more."""


class NeverStarted(Exception):
    """The job's supervisor was lost before the entrypoint was started, and it never will be."""


class SupervisorNotCreated(Exception):
    """Ray refused what the job asks of it."""


class StartTimeout(Exception):
    """A job had no living supervisor in time."""

    def __init__(self, record: JobRecord, timeout_s: float) -> None:
        super().__init__(start_timeout_message(record, timeout_s))


def explained(error: Exception) -> tuple[str, JobErrorType]:
    """Return the message of a job that failed by an exception, and its type, as Ray has them."""
    if isinstance(error, RuntimeEnvSetupError | EnvironmentFailed):
        # The same words, whether Ray's worker or its agent says so.
        words = (
            "Failed to set up runtime environment.\n"
            if isinstance(error, EnvironmentFailed)
            else ""
        )
        return f"runtime_env setup failed: {words}{error}", JobErrorType.RUNTIME_ENV_SETUP_FAILURE
    if isinstance(error, StartTimeout):
        return str(error), JobErrorType.JOB_SUPERVISOR_ACTOR_START_TIMEOUT
    if isinstance(error, ActorUnschedulableError):
        return (
            f"Job supervisor actor could not be scheduled: {error}",
            JobErrorType.JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE,
        )
    if isinstance(error, SupervisorNotCreated):
        return (
            f"Failed to start supervisor actor: {error}",
            JobErrorType.JOB_SUPERVISOR_ACTOR_START_FAILURE,
        )
    if isinstance(error, (*DIED, JobLost)):
        return f"Job supervisor actor died: {error}", JobErrorType.JOB_SUPERVISOR_ACTOR_DIED
    return (
        f"Unexpected error occurred: {brief(error)}",
        JobErrorType.JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE,
    )


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
