"""The wire types, shared by client and server. No ray, no aiohttp.

Times are milliseconds since the Unix epoch, as in Ray's own job API, unless a name says otherwise.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec


class JobStatus(str, Enum):
    """The state of a job. The last three are terminal: a job never leaves them."""

    PENDING = "PENDING"  #: Not started yet: waiting for resources or its runtime environment.
    RUNNING = "RUNNING"  #: The entrypoint runs.
    STOPPED = "STOPPED"  #: A user stopped it.
    SUCCEEDED = "SUCCEEDED"  #: The entrypoint exited with 0.
    FAILED = "FAILED"  #: The entrypoint exited with something else, or could not be run.

    def __str__(self) -> str:
        return self.value

    def is_terminal(self) -> bool:
        """Return whether the job has ended."""
        return self in TERMINAL_STATUSES


TERMINAL_STATUSES = frozenset({JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED})


class JobErrorType(str, Enum):
    """Why a job failed, in the words of Ray's own job API."""

    RUNTIME_ENV_SETUP_FAILURE = "RUNTIME_ENV_SETUP_FAILURE"
    JOB_SUPERVISOR_ACTOR_START_TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
    JOB_SUPERVISOR_ACTOR_START_FAILURE = "JOB_SUPERVISOR_ACTOR_START_FAILURE"
    JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE = "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"
    JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE = "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"
    JOB_SUPERVISOR_ACTOR_DIED = "JOB_SUPERVISOR_ACTOR_DIED"
    JOB_ENTRYPOINT_COMMAND_START_ERROR = "JOB_ENTRYPOINT_COMMAND_START_ERROR"
    JOB_ENTRYPOINT_COMMAND_ERROR = "JOB_ENTRYPOINT_COMMAND_ERROR"

    def __str__(self) -> str:
        return self.value


class JobType(str, Enum):
    """Where a job came from."""

    SUBMISSION = "SUBMISSION"  #: Submitted through the job API.
    DRIVER = "DRIVER"  #: A driver that connected to the cluster by itself.

    def __str__(self) -> str:
        return self.value


class DriverInfo(msgspec.Struct, frozen=True):
    """A driver: a process that called `ray.init()`."""

    id: str  #: Ray's job id of the driver, 8 hexadecimal digits.
    node_ip_address: str
    pid: str


class JobInfo(msgspec.Struct, kw_only=True):
    """A job, with the fields of Ray's own job API in their order."""

    type: JobType
    #: Ray's job id of the last driver that the job started, or None while it has none.
    job_id: str | None = None
    #: None for a job of type DRIVER.
    submission_id: str | None = None
    driver_info: DriverInfo | None = None
    status: JobStatus
    entrypoint: str
    message: str | None = None
    error_type: str | None = None
    start_time: int | None = None  #: ms since epoch
    end_time: int | None = None  #: ms since epoch
    metadata: dict[str, str] | None = None
    runtime_env: dict[str, Any] | None = None
    driver_agent_http_address: str | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None


class JobDetails(JobInfo, kw_only=True):
    """A job as our own API gives it: `JobInfo` and what the stock API has no word for."""

    revision: int = 0  #: Grows with every change of any job; 0 for a job of type DRIVER.
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None  #: bytes
    entrypoint_resources: dict[str, float] | None = None
    entrypoint_label_selector: dict[str, str] | None = None
    max_log_bytes: int | None = None  #: What its log may take; None if it isn't bounded.
    #: What a PENDING job waits for, in words for people; None otherwise.
    pending_reason: str | None = None


class JobPage(msgspec.Struct, kw_only=True):
    """One page of a list, newest job first."""

    jobs: list[JobDetails]
    #: Give it back as `cursor` to get the next page; None on the last page.
    next_cursor: str | None = None


class SubmitRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of `POST /api/jobs/`."""

    entrypoint: str
    submission_id: str | None = None
    job_id: str | None = None  #: The name of `submission_id` before Ray 2.0; still accepted.
    runtime_env: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    entrypoint_num_cpus: int | float | None = None
    entrypoint_num_gpus: int | float | None = None
    entrypoint_memory: int | None = None  #: bytes
    entrypoint_resources: dict[str, int | float] | None = None
    entrypoint_label_selector: dict[str, str] | None = None
    #: What the job's log may take. Beyond that its middle is dropped. Ray's own server has no such
    #: field.
    max_log_bytes: int | None = None


class SubmitResponse(msgspec.Struct):
    """The answer to a submission."""

    job_id: str  #: The same as `submission_id`, for clients older than Ray 2.0.
    submission_id: str


class StopResponse(msgspec.Struct):
    """The answer to a stop."""

    stopped: bool  #: False when the job had ended already.


class DeleteResponse(msgspec.Struct):
    """The answer to a delete."""

    deleted: bool


class LogsResponse(msgspec.Struct):
    """The whole log of a job."""

    logs: str


class LogNote(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A frame of text among the frames of bytes of a followed log."""

    dropped: int = 0  #: So many bytes at this place aren't there any more (`max_log_bytes`).
    cut_off: bool = False  #: The log ends here, and some of what its job wrote may be missing.


#: What readers of such a log are told at its end.
CUT_OFF_NOTICE = (
    "\n[ray-jobs] The disk under this log was full, or failed, when its job ended, or its node was"
    " gone before all of it was copied: some of what it wrote may be missing.\n"
)


def gap_notice(dropped: int) -> str:
    """Return what readers of a log are told where bytes of it aren't there any more."""
    return f"\n[ray-jobs] {dropped:,} bytes of this log were dropped here (max_log_bytes).\n"


class VersionInfo(msgspec.Struct, kw_only=True):
    """The answer of `GET /api/version`, as Ray gives it."""

    version: str  #: The version of the job API; "4" since Ray 2.2.
    ray_version: str
    ray_commit: str = ""
    session_name: str = ""


#: The version of Ray's job API that we serve.
STOCK_API_VERSION = "4"

#: Response headers of `GET /api/version` by which a client knows our server from Ray's own, and
#: the largest package that it takes, in bytes.
SERVER_VERSION_HEADER = "Ray-Jobs-Version"
MAX_PACKAGE_BYTES_HEADER = "Ray-Jobs-Max-Package-Bytes"

#: Ray's own server reads a whole request body, of at most this size (aiohttp's client_max_size in
#: Ray's dashboard).
STOCK_MAX_PACKAGE_BYTES = 100 * 1024 * 1024
#: The GCS takes values below 512 MiB (the limit of a gRPC message).
GCS_MAX_PACKAGE_BYTES = 512 * 1024 * 1024 - 1

#: Our own API lives under this prefix.
API_PREFIX = "/api/ray_jobs/v1"
