"""The exceptions of ray-jobs, shared by the client and the server.

Every exception has a stable `code` (what a program may switch on) and an HTTP status. The default
message of each is the first line of its docstring.
"""

from __future__ import annotations

from typing import ClassVar

#: Where Ray is missing. From a clone (or a wheel): ray-jobs is in no package index.
INSTALL_HINT = 'Install it from a clone of ray-jobs: pip install ".[server]"'


class RayJobsError(RuntimeError):
    """Something went wrong in ray-jobs.

    A `RuntimeError`, so that code written against `ray.job_submission` (which raises bare
    `RuntimeError`s) keeps catching it. Where that raises something else, as for arguments
    (`ValueError`) and connections (`ConnectionError`), our exception is one of those too.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or default_message(type(self)))
        #: What the user can do about it, or None.
        self.hint = hint

    @property
    def message(self) -> str:
        return str(self.args[0])


def default_message(error_class: type[BaseException]) -> str:
    """Return the first line of the docstring of an exception class."""
    return (error_class.__doc__ or error_class.__name__).strip().splitlines()[0]


class InvalidRequest(RayJobsError, ValueError):
    """The request is malformed.

    Also a `ValueError`.
    """

    code = "invalid_request"
    http_status = 400


class InvalidRuntimeEnv(InvalidRequest):
    """The runtime environment is malformed."""

    code = "invalid_runtime_env"


class NotASubmission(InvalidRequest):
    """Only a submission job can be stopped or deleted, or has logs.

    The id belongs to a driver that was started outside the job API.
    """

    code = "not_a_submission"


class AuthenticationFailed(RayJobsError):
    """The server refused the credentials, or got none."""

    code = "authentication_failed"
    http_status = 401


class Forbidden(RayJobsError):
    """The request is not allowed."""

    code = "forbidden"
    http_status = 403


class JobNotFound(RayJobsError):
    """The job does not exist."""

    code = "job_not_found"
    http_status = 404


class PackageNotFound(RayJobsError):
    """The package does not exist."""

    code = "package_not_found"
    http_status = 404


class DuplicateSubmissionId(RayJobsError):
    """A job with this submission id exists already."""

    code = "duplicate_submission_id"
    http_status = 409


class JobNotTerminal(RayJobsError):
    """The job has not finished, so it can't be deleted."""

    code = "job_not_terminal"
    http_status = 409


class TooLarge(RayJobsError):
    """The request body is too large."""

    code = "too_large"
    http_status = 413


class PackageTooLarge(TooLarge):
    """The package is over the size limit of the server."""

    code = "package_too_large"


class TooManyRequests(RayJobsError):
    """The server is over a limit; try again later. Nothing was done."""

    code = "too_many_requests"
    http_status = 429

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, retry_after_s: int = 1
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ServerNotReady(RayJobsError):
    """The job server can't take the request now; try again."""

    code = "server_not_ready"
    http_status = 503

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, retry_after_s: int = 1
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class ServerUnreachable(RayJobsError, ConnectionError):
    """No job server answers at the address.

    Also a `ConnectionError`.
    """

    code = "server_unreachable"
    http_status = 502


class InvalidAddress(RayJobsError, ValueError):
    """The address of the job server is malformed.

    Also a `ValueError`.
    """

    code = "invalid_address"
    http_status = 400


class UnsupportedByServer(RayJobsError):
    """The server doesn't support what was asked."""

    code = "unsupported_by_server"
    http_status = 501


class UnexpectedResponse(RayJobsError):
    """The server answered with something that is not of the job API."""

    code = "unexpected_response"
    http_status = 502


class LogStreamInterrupted(RayJobsError):
    """The stream of the log ended before the job did."""

    code = "log_stream_interrupted"
    http_status = 502


class WaitTimeout(RayJobsError, TimeoutError):
    """The job did not finish in time.

    Also a `TimeoutError`.
    """

    code = "wait_timeout"
    http_status = 504


def error_classes() -> dict[str, type[RayJobsError]]:
    """Return every exception class of this module by its code."""
    found: dict[str, type[RayJobsError]] = {}
    pending: list[type[RayJobsError]] = [RayJobsError]
    while pending:
        error_class = pending.pop()
        if error_class.__module__ == __name__:  # not those that only the command line or server has
            found[error_class.code] = error_class
        pending.extend(error_class.__subclasses__())
    return found
