"""One client that does very many things at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.session import MAX_REQUESTS
from ray_jobs.client.transport import PLAIN_REQUESTS
from ray_jobs.models import JobStatus
from tests.unit.client.job_server import JobServer, job

MANY = MAX_REQUESTS + 10
TIMEOUT_S = 20.0


class Held:
    """Requests that the server holds until it is told to answer."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0
        self._changed = asyncio.Condition()
        self._is_over = False

    async def hold(self) -> None:
        async with self._changed:
            self.count += 1
            self.most = max(self.most, self.count)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._is_over)
            self.count -= 1

    async def until(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.count >= count)

    async def end(self) -> None:
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()


async def tail(client: AsyncJobSubmissionClient) -> str:
    return "".join([chunk async for chunk in client.tail_job_logs("a")])


@pytest.mark.parametrize(
    ("path", "held_call"),
    [
        ("/api/ray_jobs/v1/jobs/a/wait", lambda client: client.wait_until_finish("a")),
        ("/api/ray_jobs/v1/jobs/a/logs/tail", tail),
    ],
)
async def test_what_the_server_holds_leaves_room_for_requests(
    server: JobServer,
    path: str,
    held_call: Callable[[AsyncJobSubmissionClient], Awaitable[object]],
) -> None:
    held = Held()

    async def answer_later(request: web.Request) -> web.StreamResponse:
        await held.hold()
        if path.endswith("wait"):
            return web.json_response(job("a", status="SUCCEEDED"))
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        return websocket

    server.overrides["GET", path] = answer_later
    server.jobs["a"] = job("a", status="RUNNING")
    async with AsyncJobSubmissionClient(server.url) as client:
        calls = [asyncio.ensure_future(held_call(client)) for _ in range(MANY)]
        await asyncio.to_thread(server.run, held.until(MANY))
        status = await asyncio.wait_for(client.get_job_status("a"), TIMEOUT_S)
        assert status is JobStatus.RUNNING
        await asyncio.to_thread(server.run, held.end())
        await asyncio.gather(*calls)


def test_requests_take_turns_in_every_loop(server: JobServer) -> None:
    """A server that is asked a thousand things at once isn't sent them all at once."""
    client = AsyncJobSubmissionClient(server.url)

    async def ask_all() -> Held:
        held = Held()

        async def answer_later(_request: web.Request) -> web.StreamResponse:
            await held.hold()
            return web.json_response(job("a"))

        server.overrides["GET", "/api/jobs/a"] = answer_later
        calls = [asyncio.ensure_future(client.get_job_status("a")) for _ in range(3 * MANY)]
        await asyncio.to_thread(server.run, held.until(MAX_REQUESTS))
        await asyncio.to_thread(server.run, held.end())
        await asyncio.gather(*calls)
        return held

    server.jobs["a"] = job("a")
    for _ in range(2):
        assert asyncio.run(ask_all()).most <= MAX_REQUESTS + PLAIN_REQUESTS
