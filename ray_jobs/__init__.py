"""ray-jobs: a job server for Ray clusters. Here are the public names of its Python SDK.

They are imported with their first use, so that `import ray_jobs` costs nearly nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_jobs.client.async_client import AsyncJobSubmissionClient
    from ray_jobs.client.sync_client import JobSubmissionClient
    from ray_jobs.client.types import Progress, ServerInfo
    from ray_jobs.errors import (
        AuthenticationFailed,
        DuplicateSubmissionId,
        Forbidden,
        InvalidAddress,
        InvalidRequest,
        InvalidRuntimeEnv,
        JobNotFound,
        JobNotTerminal,
        LogStreamInterrupted,
        NotASubmission,
        PackageNotFound,
        PackageTooLarge,
        RayJobsError,
        ServerNotReady,
        ServerUnreachable,
        TooLarge,
        TooManyRequests,
        UnexpectedResponse,
        UnsupportedByServer,
        WaitTimeout,
    )
    from ray_jobs.models import DriverInfo, JobDetails, JobErrorType, JobInfo, JobStatus, JobType

__all__ = [
    "AsyncJobSubmissionClient",
    "AuthenticationFailed",
    "DriverInfo",
    "DuplicateSubmissionId",
    "Forbidden",
    "InvalidAddress",
    "InvalidRequest",
    "InvalidRuntimeEnv",
    "JobDetails",
    "JobErrorType",
    "JobInfo",
    "JobNotFound",
    "JobNotTerminal",
    "JobStatus",
    "JobSubmissionClient",
    "JobType",
    "LogStreamInterrupted",
    "NotASubmission",
    "PackageNotFound",
    "PackageTooLarge",
    "Progress",
    "RayJobsError",
    "ServerInfo",
    "ServerNotReady",
    "ServerUnreachable",
    "TooLarge",
    "TooManyRequests",
    "UnexpectedResponse",
    "UnsupportedByServer",
    "WaitTimeout",
]

_CLIENT = {"AsyncJobSubmissionClient", "JobSubmissionClient", "Progress", "ServerInfo"}
_MODELS = {"DriverInfo", "JobDetails", "JobErrorType", "JobInfo", "JobStatus", "JobType"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "client" if name in _CLIENT else "models" if name in _MODELS else "errors"
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
