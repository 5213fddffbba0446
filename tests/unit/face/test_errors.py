"""What becomes of exceptions: every one of the tree has its response, and none leaves a handler."""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from ray_jobs.dashboard_module.errors import json_errors, persistently, plain_errors
from ray_jobs.dashboard_module.routes import ROUTES
from yarl import URL

from ray_jobs import errors

Ask = Callable[[Any, Exception], Awaitable[tuple[int, aiohttp.ClientResponse, str]]]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Ask a server whose handler raises, guarded in one way or the other."""
    raising: list[Exception] = []
    guards: list[Any] = []

    async def fail(_face: Any, _request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        raise raising.pop()

    async def handle(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response: aiohttp.web.StreamResponse = await guards.pop()(fail)(None, request)
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/", handle)
    async with TestClient(TestServer(app)) as client:

        async def ask(guard: Any, error: Exception) -> tuple[int, aiohttp.ClientResponse, str]:
            raising.append(error)
            guards.append(guard)
            async with client.get("/") as answer:
                return answer.status, answer, await answer.text()

        yield ask


TREE = sorted(errors.error_classes().items())


@pytest.mark.parametrize(("code", "error_class"), TREE)
async def test_every_exception_has_its_response(
    ask: Ask, code: str, error_class: type[errors.RayJobsError]
) -> None:
    status, answer, text = await ask(json_errors, error_class("these words"))
    assert status == error_class.http_status
    assert answer.content_type == "application/json"
    body = json.loads(text)["error"]
    assert body["code"] == code
    if status != 500:
        assert body["message"] == "these words"
    status, answer, text = await ask(plain_errors, error_class("these words"))
    duplicate = error_class is errors.DuplicateSubmissionId
    assert status == (500 if duplicate else error_class.http_status)
    assert answer.content_type == "text/plain"
    if status != 500 or duplicate:
        assert text == "these words"


async def test_when_to_try_again(ask: Ask) -> None:
    for error, seconds in (
        (errors.ServerNotReady(retry_after_s=7), "7"),
        (errors.TooManyRequests(), "1"),
    ):
        for guard in (json_errors, plain_errors):
            _, answer, _ = await ask(guard, error)
            assert answer.headers["Retry-After"] == seconds


@pytest.mark.parametrize(
    "error", [KeyError("s3cret"), errors.RayJobsError("s3cret"), OSError("s3cret")]
)
@pytest.mark.parametrize("guard", [json_errors, plain_errors])
async def test_an_incident_is_for_the_log_alone(
    ask: Ask, guard: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status, _, text = await ask(guard, error)
    assert status == 500
    assert "s3cret" not in text
    assert "Traceback" not in text
    (incident,) = [word for word in text.split() if len(word) == 9 and word.endswith(").")] or [
        text.split("incident ")[1][:8]
    ]
    assert incident.strip(").") in caplog.text
    assert "s3cret" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.ENOSPC, "full")])
async def test_no_path_forges_a_line_of_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_face: Any, _request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        raise error

    app = aiohttp.web.Application()
    app.router.add_get("/{path}", functools.partial(plain_errors(fail), None))
    async with (
        TestClient(TestServer(app)) as client,
        client.get(URL("/a%0Aforged", encoded=True)) as answer,
    ):
        assert answer.status in (500, 503)
    [said] = caplog.records
    assert "forged" in said.getMessage().splitlines()[0]


async def test_aiohttps_own_exceptions_are_responses(ask: Ask) -> None:
    status, _, text = await ask(json_errors, aiohttp.web.HTTPNotFound(text="nowhere"))
    assert (status, json.loads(text)) == (
        404,
        {"error": {"code": "http_404", "message": "nowhere"}},
    )
    too_large = aiohttp.web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2)
    status, _, text = await ask(json_errors, too_large)
    assert (status, json.loads(text)["error"]["code"]) == (413, "too_large")
    status, answer, _ = await ask(plain_errors, aiohttp.web.HTTPBadRequest())
    assert (status, answer.content_type) == (400, "text/plain")


async def test_an_answer_that_has_begun_is_broken_off() -> None:
    async def fail_late(_: Any, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise KeyError("late")

    async def handle(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response: aiohttp.web.StreamResponse = await plain_errors(fail_late)(None, request)
        return response

    app = aiohttp.web.Application()
    app.router.add_get("/", handle)
    async with TestClient(TestServer(app)) as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.get("/") as answer:
                await answer.read()


async def test_a_cancellation_passes() -> None:
    async def cancelled(_face: Any, _request: Any) -> aiohttp.web.StreamResponse:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await plain_errors(cancelled)(None, None)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_nothing_leaves_a_handler(route: Any) -> None:
    """With a face that fails at the first touch, every route answers 500 all the same."""

    async def handle(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response: aiohttp.web.StreamResponse = await route.handler(None, request)
        return response

    app = aiohttp.web.Application()
    app.router.add_route(route.method, route.path, handle)
    path = route.path.format(job_id="a", protocol="gcs", name="a.zip")
    body = b'{"entrypoint": "true"}'
    needs_no_face = route.name == "own_get_openapi"
    async with (
        TestClient(TestServer(app)) as client,
        client.request(route.method, path, data=body) as answer,
    ):
        assert answer.status == (200 if needs_no_face else 500)
        assert needs_no_face or "incident" in await answer.text()


async def test_a_background_task_goes_on_after_failures() -> None:
    failures: list[Exception] = [KeyError("a bug"), errors.ServerNotReady("not now")]

    async def step() -> bool:
        if failures:
            raise failures.pop()
        return False

    await asyncio.wait_for(persistently("Testing", step), 5)
    assert failures == []


def test_names_of_routes_are_unique() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
