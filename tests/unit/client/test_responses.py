from __future__ import annotations

import json

import pytest

from ray_jobs import errors
from ray_jobs.client.responses import MAX_MESSAGE, decode, error_of, exception_message
from ray_jobs.models import JobInfo

WHERE = "GET http://host:8265/api/jobs/x"

NESTED_TRACEBACK = """Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_head.py", line 380, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
  File "/ray/dashboard/modules/job/job_head.py", line 165, in _raise_error
    raise RuntimeError(f"Request failed with status code {status}: {error_text}.")
RuntimeError: Request failed with status code 500: Traceback (most recent call last):
  File "/ray/dashboard/modules/job/job_agent.py", line 50, in submit_job
    submission_id = await self.get_job_manager().submit_job(
ValueError: Job with submission_id a already exists. Please use a different submission_id.
.
"""


def found(status: int, text: str, **headers: str) -> errors.RayJobsError:
    return error_of(status, headers, text.encode(), WHERE)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (401, "Unauthorized: Missing authentication token", errors.AuthenticationFailed),
        (403, "Forbidden: Invalid authentication token", errors.AuthenticationFailed),
        (403, "Browser requests not allowed.", errors.Forbidden),
        (403, "<html>Go away</html>", errors.Forbidden),
        (404, "Job x does not exist", errors.JobNotFound),
        (404, "Package gcs://x does not exist", errors.PackageNotFound),
        (404, "404: Not Found", errors.UnexpectedResponse),
        (500, NESTED_TRACEBACK, errors.DuplicateSubmissionId),
        (
            500,
            "Attempted to delete job, but it is in a non-terminal state R.",
            errors.JobNotTerminal,
        ),
        (400, "Can only stop submission type jobs", errors.NotASubmission),
        (400, "Can only get logs of submission type jobs", errors.NotASubmission),
        (400, "Malformed.", errors.InvalidRequest),
        (413, "<html>Too Large</html>", errors.TooLarge),
        (429, "", errors.TooManyRequests),
        (500, "No available agent to submit job, please try again.", errors.ServerNotReady),
        (500, "Something broke", errors.UnexpectedResponse),
        (502, "<html><title>502 Bad Gateway</title></html>", errors.ServerUnreachable),
        (503, "Busy", errors.ServerNotReady),
        (200, "<html>Log in</html>", errors.UnexpectedResponse),
        (302, "", errors.UnexpectedResponse),
    ],
)
def test_statuses_and_words(status: int, text: str, expected: type[errors.RayJobsError]) -> None:
    error = found(status, text)
    assert type(error) is expected
    assert "Traceback" not in str(error)
    assert "<html" not in str(error)


def test_every_code_of_our_own_api() -> None:
    for code, error_class in errors.error_classes().items():
        text = json.dumps({"error": {"code": code, "message": "Words."}})
        error = found(400, text)
        assert type(error) is error_class
        assert str(error) == "Words."


def test_unknown_code_of_a_younger_server() -> None:
    error = found(418, '{"error": {"code": "teapot", "message": "Short and stout."}}')
    assert type(error) is errors.RayJobsError
    assert str(error) == "Short and stout."


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)]
)
def test_retry_after(value: str, seconds: int) -> None:
    for text in ("Busy", '{"error": {"code": "server_not_ready", "message": "Busy"}}'):
        error = found(503, text, **{"Retry-After": value})
        assert isinstance(error, errors.ServerNotReady)
        assert error.retry_after_s == seconds


def test_how_to_give_a_token() -> None:
    hint = found(401, "").hint or ""
    assert all(w in hint for w in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"))


def test_tracebacks_are_reduced_to_their_message() -> None:
    assert exception_message(NESTED_TRACEBACK) == (
        "Job with submission_id a already exists. Please use a different submission_id."
    )
    assert (
        exception_message(
            'Traceback (most recent call last):\n  File "a.py", line 1\n    x: int\n'
            "a.b.SomeError: first\nsecond: line\n"
        )
        == "first\nsecond: line"
    )
    assert exception_message("Traceback (most recent call last):\n  File\nKeyError") == "KeyError"


def test_messages_are_short_and_without_passwords() -> None:
    error = found(500, "x" * 100_000)
    assert len(str(error)) < 400
    error = found(400, "y" * 100_000)
    assert len(str(error)) <= MAX_MESSAGE
    assert "secret" not in str(found(400, "see http://a:secret@host/"))


def test_web_pages_are_named_by_their_title() -> None:
    error = found(500, "<!DOCTYPE html><title>Oops \n page</title>" + "z" * 1000)
    assert WHERE in str(error)
    assert "Oops page" in str(error)
    assert "zzz" not in str(error)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"type": "SUBMISSION"}'])
def test_bodies_that_are_not_of_the_job_api(body: bytes) -> None:
    with pytest.raises(errors.UnexpectedResponse, match="not of the job API"):
        decode(body, JobInfo, WHERE)
    with pytest.raises(errors.UnexpectedResponse, match="web page: Log in"):
        decode(b"<html><title>Log in</title>", JobInfo, WHERE)


def test_fields_of_younger_servers_are_ignored() -> None:
    body = b'{"type":"DRIVER","status":"RUNNING","entrypoint":"","new":1}'
    assert decode(body, JobInfo, WHERE).submission_id is None
