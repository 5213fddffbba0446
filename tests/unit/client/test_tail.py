from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from ray_jobs import errors
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.retry import RetryPolicy
from ray_jobs.models import CUT_OFF_NOTICE
from tests.unit.client.job_server import JobServer

OWN = "/api/ray_jobs/v1/jobs/a/logs/tail"
STOCK = "/api/jobs/a/logs/tail"
LOG = "1. ä€🙂\n".encode() * 50 + b"\xff\xfe end\n"

Act = Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]


def serve(server: JobServer, path: str, act: Act) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await act(websocket, request)
        return websocket

    server.overrides["GET", path] = handler


def fast_client(server: JobServer, window_s: float = 5.0) -> AsyncJobSubmissionClient:
    client = AsyncJobSubmissionClient(server.url)
    client._retry = RetryPolicy(window_s=window_s, first_delay_s=0.001, longest_delay_s=0.01)
    return client


async def tail(server: JobServer, window_s: float = 5.0) -> str:
    async with fast_client(server, window_s) as client:
        return "".join([chunk async for chunk in client.tail_job_logs("a")])


async def test_characters_are_put_together_across_frames(server: JobServer) -> None:
    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        for byte in LOG:
            await websocket.send_bytes(bytes([byte]))

    serve(server, OWN, act)
    assert await tail(server) == LOG.decode("utf-8", "replace")


async def test_character_that_never_ends(server: JobServer) -> None:
    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        await websocket.send_bytes(b"a\xe2\x82")

    serve(server, OWN, act)
    assert await tail(server) == "a\ufffd"


@pytest.mark.parametrize("how", ["abort", "going away", "error"])
async def test_lost_connection_is_taken_up_again(server: JobServer, how: str) -> None:
    async def act(websocket: web.WebSocketResponse, request: web.Request) -> None:
        offset = int(request.query["offset"])
        await websocket.send_bytes(LOG[offset : offset + 101])
        if offset + 101 >= len(LOG):
            return
        if how == "abort":
            # Behind what was sent, as when a server dies.
            assert request.transport is not None
            request.transport.close()
        elif how == "going away":
            await websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY)
        else:
            await websocket.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR)

    serve(server, OWN, act)
    assert await tail(server) == LOG.decode("utf-8", "replace")
    offsets = [path.partition("offset=")[2] for _, path in server.requests if "offset" in path]
    assert offsets == [str(n) for n in range(0, len(LOG), 101)]


async def test_log_that_may_be_cut_off(server: JobServer) -> None:
    """The connection is lost between the word of it and the end of the stream."""
    offsets = []

    async def act(websocket: web.WebSocketResponse, request: web.Request) -> None:
        offset = int(request.query["offset"])
        offsets.append(offset)
        await websocket.send_bytes(LOG[offset:])
        await websocket.send_str('{"cut_off": true}')
        if len(offsets) < 3:
            await websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    serve(server, OWN, act)
    assert await tail(server) == LOG.decode("utf-8", "replace") + CUT_OFF_NOTICE
    assert offsets == [0, len(LOG), len(LOG)]


async def test_server_that_restarts(server: JobServer) -> None:
    async def act(websocket: web.WebSocketResponse, request: web.Request) -> None:
        if request.query["offset"] == "0":
            await websocket.send_bytes(LOG[:10])
            await websocket.receive()  # until the server goes down
        else:
            await websocket.send_bytes(LOG[10:])

    serve(server, OWN, act)
    async with fast_client(server) as client:
        chunks = client.tail_job_logs("a")
        text = await anext(chunks)
        server.stop()
        server.answer("GET", "/nothing", 404)
        server.start()
        text += "".join([chunk async for chunk in chunks])
    assert text == LOG.decode("utf-8", "replace")


async def test_server_that_never_comes_back(server: JobServer) -> None:
    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        await websocket.send_bytes(b"0123456789")

        server.answer("GET", OWN, 503, "Busy")
        await websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    serve(server, OWN, act)
    with pytest.raises(errors.LogStreamInterrupted, match="after 10 bytes"):
        await tail(server, window_s=0.05)


@pytest.mark.parametrize("is_ray_jobs", [True, False])
async def test_refused(server: JobServer, is_ray_jobs: bool) -> None:
    server.is_ray_jobs = is_ray_jobs
    path = OWN if is_ray_jobs else STOCK
    server.answer("GET", path, 404, "Job a does not exist")
    with pytest.raises(errors.JobNotFound):
        await tail(server)
    server.answer("GET", path, 400, "Can only get logs of submission type jobs")
    with pytest.raises(errors.NotASubmission):
        await tail(server)
    server.answer("GET", path, 200, "<html>proxy</html>")
    with pytest.raises(errors.UnexpectedResponse):
        await tail(server)


async def test_job_that_is_deleted_meanwhile(server: JobServer) -> None:
    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        await websocket.send_bytes(b"x")
        server.answer("GET", OWN, 404, '{"error": {"code": "job_not_found", "message": "Gone."}}')
        await websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    serve(server, OWN, act)
    with pytest.raises(errors.JobNotFound, match="Gone"):
        await tail(server)


async def test_rays_own_server(server: JobServer) -> None:
    server.is_ray_jobs = False

    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        await websocket.send_str("ä\n")
        await websocket.send_str("b\n")

    serve(server, STOCK, act)
    assert await tail(server) == "ä\nb\n"


async def test_lost_connection_to_rays_own_server(server: JobServer) -> None:
    server.is_ray_jobs = False

    async def act(websocket: web.WebSocketResponse, request: web.Request) -> None:
        await websocket.send_str("a\n")
        assert request.transport is not None
        request.transport.close()

    serve(server, STOCK, act)
    async with fast_client(server) as client:
        chunks = client.tail_job_logs("a")
        assert await anext(chunks) == "a\n"
        with pytest.raises(errors.LogStreamInterrupted, match="1006"):
            await anext(chunks)


async def test_reader_that_leaves_early(server: JobServer) -> None:
    closed: list[int | None] = []
    told = threading.Event()

    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        await websocket.send_bytes(b"x")
        await websocket.receive()
        closed.append(websocket.close_code)
        told.set()

    serve(server, OWN, act)
    async with fast_client(server) as client:
        chunks = client.tail_job_logs("a")
        assert await anext(chunks) == "x"
        await chunks.aclose()  # type: ignore[attr-defined]
    assert await asyncio.to_thread(told.wait, 5)
    assert closed == [1000]


async def test_large_frames(server: JobServer) -> None:
    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        for _ in range(100):
            await websocket.send_bytes(b"x" * 65536)

    serve(server, OWN, act)
    assert len(await tail(server)) == 6_553_600


async def test_a_cancellation_is_not_lost_just_when_the_stream_opens(server: JobServer) -> None:
    opened, left = threading.Event(), threading.Event()

    async def act(websocket: web.WebSocketResponse, _request: web.Request) -> None:
        opened.set()
        await websocket.receive()
        left.set()

    serve(server, OWN, act)
    async with fast_client(server) as client:
        for attempt in range(60):
            opened.clear()
            left.clear()
            tailing = asyncio.ensure_future(anext(aiter(client.tail_job_logs("a"))))
            while not (opened.is_set() or tailing.done()):  # noqa: ASYNC110 - at once
                await asyncio.sleep(0)
            for _ in range(attempt % 12):  # the client has its answer after some of them
                await asyncio.sleep(0)
            tailing.cancel()
            await asyncio.wait((tailing,), timeout=5)
            assert tailing.cancelled()
            assert await asyncio.to_thread(left.wait, 5)
