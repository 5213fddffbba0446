"""The requests by which a client finds out whom it talks to, while the server comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from ray_jobs import AsyncJobSubmissionClient, errors
from ray_jobs.client.retry import RetryPolicy
from tests.unit.client.job_server import JobServer

TAIL = "/api/ray_jobs/v1/jobs/a/logs/tail"


def patient(server: JobServer) -> AsyncJobSubmissionClient:
    client = AsyncJobSubmissionClient(server.url)
    client._retry = RetryPolicy(window_s=5.0, first_delay_s=0.001, longest_delay_s=0.01)
    return client


def refuse(server: JobServer, path: str, *statuses: int) -> None:
    """Answer so many requests so, then as ever."""
    left = list(statuses)

    async def handler(_request: web.Request) -> web.Response:
        status = left.pop(0)
        if not left:
            del server.overrides["GET", path]
        return web.Response(status=status, headers={"Retry-After": "0"})

    server.overrides["GET", path] = handler


async def tail(websocket_request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(websocket_request)
    await websocket.send_bytes(b"all of it\n")
    await websocket.close()
    return websocket


async def test_a_log_is_followed_though_the_server_was_away_just_then(server: JobServer) -> None:
    server.overrides["GET", TAIL] = tail
    refuse(server, "/api/version", 503, 429, 502)
    async with patient(server) as client:
        await client.submit_job(entrypoint="true", submission_id="a")
        assert "".join([chunk async for chunk in client.tail_job_logs("a")]) == "all of it\n"
    assert len(server.paths("GET")) == 5


async def test_who_gives_up_says_that_the_job_goes_on(server: JobServer) -> None:
    server.answer("GET", "/api/version", 503, "Busy.")
    async with patient(server) as client:
        client._retry = RetryPolicy(window_s=0.0)
        await client.submit_job(entrypoint="true", submission_id="a")
        with pytest.raises(errors.LogStreamInterrupted, match="Busy") as caught:
            [chunk async for chunk in client.tail_job_logs("a")]
    assert "The job goes on" in str(caught.value.hint)


async def test_who_has_the_address_wrong_learns_it_at_once() -> None:
    async with AsyncJobSubmissionClient("http://127.0.0.1:1") as client:
        with pytest.raises(errors.ServerUnreachable, match=r"127\.0\.0\.1:1"):
            [chunk async for chunk in client.tail_job_logs("a")]


async def test_a_limit_before_an_upload_is_waited_out(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    refuse(server, "/api/version", 429)
    async with patient(server) as client:
        await client.submit_job(entrypoint="true", runtime_env={"working_dir": str(tmp_path)})
    assert len(server.packages) == 1


async def test_a_submission_that_the_manager_may_have(server: JobServer) -> None:
    """It hung on the way to the store, and the server couldn't wait any longer."""

    async def accept_and_refuse(request: web.Request) -> web.Response:
        del server.overrides["POST", "/api/jobs/"]
        await server._jobs(request)
        return web.Response(status=503, text="Try again.", headers={"Retry-After": "1"})

    server.overrides["POST", "/api/jobs/"] = accept_and_refuse
    async with patient(server) as client:
        job_id = await client.submit_job(entrypoint="true")
    assert list(server.jobs) == [job_id]
    assert server.paths("POST") == ["/api/jobs/"]


@pytest.mark.parametrize("submission_id", [None, "mine"])
async def test_a_submission_of_which_nobody_knows(
    server: JobServer, submission_id: str | None
) -> None:
    server.answer("POST", "/api/jobs/", 503, "Try again.", Retry_After="1")
    async with patient(server) as client:
        ids: list[str] = []
        with pytest.raises(errors.ServerNotReady, match="Try again") as caught:
            await client.submit_job(
                entrypoint="true", submission_id=submission_id, on_sending=ids.append
            )
    assert ids[0] in str(caught.value.hint)
    assert len(server.paths("POST")) == 1


async def test_a_token_that_is_replaced(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    server.overrides["GET", TAIL] = tail
    async with patient(server) as client:
        # The first ones go without aiohttp.
        for number in range(8):
            token.write_text(f"token-{number}")
            await client.list_jobs()
        token.write_text("token-8")
        assert [chunk async for chunk in client.tail_job_logs("a")]
        token.unlink()  # for a moment
        await client.list_jobs()
    sent = [headers["Authorization"].removeprefix("Bearer token-") for headers in server.headers]
    # The log takes a look at the server first.
    assert sent == [*map(str, range(8)), "8", "8", "8"]
