"""The one place that maps exceptions to responses, and the only one that catches them all.

Nothing but `asyncio.CancelledError` leaves a handler: Ray's route table would answer any exception,
an `HTTPNotFound` too, with a 500 and its traceback.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import aiohttp.web
import msgspec

from ray_jobs import errors
from ray_jobs.scrubbing import scrubbed

from .notes import note_reason
from .open_files import ServerFull

if TYPE_CHECKING:
    from .face import Face

logger = logging.getLogger(__name__)

Handler = Callable[["Face", aiohttp.web.Request], Awaitable[aiohttp.web.StreamResponse]]

#: How long a background task waits after a failure before it tries again, at first and at most.
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
#: A step that went on for so long counts as a success, though it failed in the end.
LASTING_S = 5.0

#: For errors of aiohttp's own (a body over its limit, a handshake that isn't one).
_CODES_BY_STATUS = {
    error_class.http_status: error_class.code
    for error_class in (
        errors.InvalidRequest,
        errors.AuthenticationFailed,
        errors.Forbidden,
        errors.TooLarge,
        errors.TooManyRequests,
        errors.ServerNotReady,
    )
}


class ErrorDetail(msgspec.Struct):
    code: str
    message: str


class ErrorAnswer(msgspec.Struct):
    """The body of an error of our own API."""

    error: ErrorDetail


#: Answers that are refusals, whoever gave them: not allowed, or too much.
REFUSALS = frozenset({401, 403, 405, 413, 429})
#: What passes, or is for whoever runs the server to mend: files, memory, disk.
_EXHAUSTED = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT}
)

Respond = Callable[[int, str, str, Mapping[str, str]], aiohttp.web.Response]


def plain_response(
    status: int, code: str, message: str, headers: Mapping[str, str]
) -> aiohttp.web.Response:
    """Return an error as the compatible face gives it: KubeRay takes any JSON body for a job."""
    if code == errors.DuplicateSubmissionId.code:
        status = 500  # as Ray's own server; KubeRay re-attaches on that and the words
    return aiohttp.web.Response(status=status, text=message, headers=headers)


def json_response(
    status: int, code: str, message: str, headers: Mapping[str, str]
) -> aiohttp.web.Response:
    """Return an error as our own API gives it."""
    return aiohttp.web.Response(
        status=status,
        body=msgspec.json.encode(ErrorAnswer(ErrorDetail(code, message))),
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )


def guarded(respond: Respond) -> Callable[[Handler], Handler]:
    """Return a decorator that turns whatever a handler raises into a response."""

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def guard(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            try:
                return await handler(face, request)
            except Exception as error:  # noqa: BLE001 - the one place for it
                answer = _answer(error, request, respond)
                if answer.status in REFUSALS:
                    note_reason(_reason(error, answer.status))
                if isinstance(error, ServerFull):
                    answer.force_close()
                # A body's stream keeps the error that broke it off; the error's frames would keep
                # the stream, and all that has come, until the garbage is collected.
                error.__traceback__ = None
            if _has_begun(request):
                # Part of another answer is out: the client must see that it is broken off.
                if request.transport is not None:
                    request.transport.abort()
                logger.debug("%s was broken off.", _named(request))
            return answer

        return guard

    return decorate


#: For the compatible face, and for our own API.
plain_errors = guarded(plain_response)
json_errors = guarded(json_response)


def _answer(
    error: Exception, request: aiohttp.web.Request, respond: Respond
) -> aiohttp.web.Response:
    if isinstance(error, errors.RayJobsError) and error.http_status != 500:
        headers = {}
        if isinstance(error, errors.ServerNotReady | errors.TooManyRequests):
            headers["Retry-After"] = str(error.retry_after_s)
        return respond(error.http_status, error.code, scrubbed(error.message), headers)
    if isinstance(error, aiohttp.web.HTTPException):
        code = _CODES_BY_STATUS.get(error.status, f"http_{error.status}")
        return respond(error.status, code, error.text or error.reason, {})
    if isinstance(error, aiohttp.web.RequestPayloadError):
        return respond(400, errors.InvalidRequest.code, f"The body is malformed: {error}", {})
    if isinstance(error, ConnectionError) and _is_gone(request):
        return respond(400, errors.InvalidRequest.code, "The client has gone away.", {})
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        logger.warning("%s: %s", _named(request), error)
        message = f"The server has run out of something: {os.strerror(error.errno)}. Try again."
        return respond(503, errors.ServerNotReady.code, message, {"Retry-After": "5"})
    incident = secrets.token_hex(4)
    said = scrubbed("".join(traceback.format_exception(error)))
    logger.error("Incident %s: %s failed.\n%s", incident, _named(request), said)
    return respond(
        500,
        errors.RayJobsError.code,
        f"Internal error (incident {incident}). The server's log says more.",
        {},
    )


def _reason(error: Exception, status: int) -> str:
    """Return the reason of a refusal for the audit: an error's own, or its code."""
    if isinstance(error, errors.RayJobsError):
        return str(getattr(error, "reason", error.code))
    return _CODES_BY_STATUS.get(status, f"http_{status}")


def _named(request: aiohttp.web.Request) -> str:
    """Return a request for the log, in one line whatever its path holds.

    Without its query: there may be secrets in it.
    """
    return f"{request.method} {ascii(request.rel_url.raw_path)[1:-1]}"


def _is_gone(request: aiohttp.web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _has_begun(request: aiohttp.web.Request) -> bool:
    """Return whether bytes of a response have been sent."""
    return request.writer.output_size > 0


async def persistently(what: str, step: Callable[[], Awaitable[bool]]) -> None:
    """Repeat a step of a background task until it returns False, whatever it raises.

    Args:
        what: The task, for the log: "following the job manager".
    """
    loop = asyncio.get_running_loop()
    delay_s = FIRST_RETRY_S
    while True:
        begun = loop.time()
        try:
            while await step():
                begun = loop.time()
                delay_s = FIRST_RETRY_S
            return
        except errors.ServerNotReady as error:
            logger.info("%s: %s Again in %.2f s.", what, error, delay_s)
        except Exception:
            logger.exception("%s failed; again in %.2f s.", what, delay_s)
        if loop.time() - begun > LASTING_S:
            delay_s = FIRST_RETRY_S
        await asyncio.sleep(delay_s)
        delay_s = min(LAST_RETRY_S, delay_s * 2)
