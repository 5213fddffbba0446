"""What a server's answer that isn't the hoped-for one means: one exception for each. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from ray_jobs import errors
from ray_jobs.client.address import redact
from ray_jobs.client.auth import TOKEN_HINT

T = TypeVar("T")

#: Longest message taken from a server, in characters. An installer's own words fit.
MAX_MESSAGE = 2000
MAX_LINE = 200

_OTHER_HINT = "Something else than a Ray job server may listen there."

_TRACEBACK = "Traceback (most recent call last)"
#: The line of a traceback that names the exception: at the margin, a dotted name, a colon.
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*: ?", re.MULTILINE)
_HTML = re.compile(r"^\s*(<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)


class _ErrorDetail(msgspec.Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


def decode(body: bytes, wanted: type[T], where: str) -> T:
    """Decode the JSON of an answer.

    Raises:
        UnexpectedResponse: it isn't of that type.
    """
    try:
        return msgspec.json.decode(body, type=wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if _HTML.match(_text(body)):
            raise _unexpected(where, "with a web page", _text(body)) from None
        raise errors.UnexpectedResponse(
            f"{where} answered something that is not of the job API: {error}.", hint=_OTHER_HINT
        ) from None


def error_of(
    status: int, headers: Mapping[str, str], body: bytes, where: str
) -> errors.RayJobsError:
    """Return the exception that an answer stands for.

    Args:
        where: The request, as in `GET http://host:8265/api/jobs/`.
    """
    own = _own_error(status, headers, body)
    if own is not None:
        return own
    text = _text(body).strip()
    said = "" if _HTML.match(text) else exception_message(text)
    found = _by_words(status, said) or _by_status(status, headers, said, where)
    if found is not None:
        return found
    if 300 <= status < 400:
        target = redact(headers.get("Location", "elsewhere")).split("?", 1)[0]
        return errors.UnexpectedResponse(
            f"{where} redirects to {target[:MAX_LINE]}.",
            hint="Give that address if the job server is there; a login page of a proxy wants "
            "headers or cookies that pass it.",
        )
    return _unexpected(where, f"with status {status}", text)


def _own_error(status: int, headers: Mapping[str, str], body: bytes) -> errors.RayJobsError | None:
    """Return the exception of an answer of our own API, None for any other answer."""
    try:
        detail = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    message = redact(detail.message)[:MAX_MESSAGE] or None
    error_class = errors.error_classes().get(detail.code, errors.RayJobsError)
    if error_class in (errors.ServerNotReady, errors.TooManyRequests):
        return error_class(message, retry_after_s=_retry_after(headers))
    hint = TOKEN_HINT if error_class is errors.AuthenticationFailed else None
    return error_class(message or f"The server answered with status {status}.", hint=hint)


def _by_words(status: int, said: str) -> errors.RayJobsError | None:
    """Return what the words stand for that clients of Ray's job API are known to read."""
    if "already exists" in said and "Please use a different submission_id" in said:
        return errors.DuplicateSubmissionId(said)
    if "is in a non-terminal state" in said:
        return errors.JobNotTerminal(said)
    if re.search(r"Can only .* submission type jobs", said):
        return errors.NotASubmission(said)
    if status == 404 and "does not exist" in said:
        return (errors.PackageNotFound if said.startswith("Package") else errors.JobNotFound)(said)
    if "No available agent to submit job" in said:
        return errors.ServerNotReady(said)
    return None


def _by_status(
    status: int, headers: Mapping[str, str], said: str, where: str
) -> errors.RayJobsError | None:
    if status == 401 or (status == 403 and "token" in said.lower()):
        return errors.AuthenticationFailed(
            f"{where} refused: {said.rstrip('.') or 'it wants to know who asks'}.", hint=TOKEN_HINT
        )
    if status == 403:
        return errors.Forbidden(f"{where} is forbidden{': ' if said else ''}{said}.")
    if status == 400 and said:
        return errors.InvalidRequest(said)
    if status == 413:
        return errors.TooLarge(
            f"{where}: the body is too large for the server{': ' if said else ''}{said}.",
            hint="A proxy in front of it may have a limit of its own (nginx: "
            "client_max_body_size). Give the URI of what is large instead.",
        )
    if status == 429:
        return errors.TooManyRequests(said or None, retry_after_s=_retry_after(headers))
    if status == 503:
        return errors.ServerNotReady(said or None, retry_after_s=_retry_after(headers))
    if status in {502, 504}:
        # A proxy speaks for a server that doesn't: as good as no answer.
        return errors.ServerUnreachable(
            f"{where}: a proxy answered with status {status}, for the job server behind it didn't."
        )
    return None


def exception_message(text: str) -> str:
    """Return what a text says, without the Python traceback that Ray's own server sends."""
    if _TRACEBACK in text:
        # Tracebacks may be nested (Ray's head quotes its agent's): the last word counts.
        tail = text[text.rindex(_TRACEBACK) :]
        found = list(_EXCEPTION.finditer(tail))
        lines = tail.strip().splitlines()
        margin = [match for match in found if not _within_frame(tail, match.start())]
        # A quoted traceback has the full stop of the sentence that quotes it on a line of its own.
        text = tail[margin[0].end() :].strip().removesuffix("\n.") if margin else lines[-1]
    return redact(text.strip())[:MAX_MESSAGE]


def _within_frame(tail: str, position: int) -> bool:
    """Return whether more frames of the traceback follow, as after a multi-line expression."""
    return '\n  File "' in tail[position:]


def _unexpected(where: str, how: str, text: str) -> errors.UnexpectedResponse:
    title = _TITLE.search(text)
    if title:
        text = title[1]
    elif _HTML.match(text):
        text = ""
    line = " ".join(redact(exception_message(text)).split())[:MAX_LINE]
    said = f": {line}" if line else "."
    return errors.UnexpectedResponse(f"{where} answered {how}{said}", hint=_OTHER_HINT)


def _retry_after(headers: Mapping[str, str]) -> int:
    """Return the seconds of a Retry-After header; it may hold a date instead, then 1."""
    value = headers.get("Retry-After", "")
    return max(1, min(int(value), 3600)) if value.isdecimal() else 1


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")
