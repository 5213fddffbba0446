"""The last lines of a log, of which a server sends no more than is asked for."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator

import pytest
from aiohttp import web

from ray_jobs import AsyncJobSubmissionClient, errors
from ray_jobs.client import log_end
from ray_jobs.models import gap_notice
from tests.unit.client.job_server import JobServer, job

RAW = "/api/ray_jobs/v1/jobs/a/logs"
LOG = b"".join(b"%d \xc3\xa4\xf0\x9f\x99\x82\n" % number for number in range(1000)) + b"no newline"


class Log:
    """A log on the server, of whose middle bytes may have been dropped."""

    def __init__(self, server: JobServer, data: bytes, gap: range = range(0)) -> None:
        self.data = data
        self.gap = gap
        #: Bytes of the answers.
        self.sent = 0
        server.jobs["a"] = job("a", status="SUCCEEDED", end_time=1)
        server.overrides["GET", RAW] = self.send
        server.overrides["GET", f"{RAW}/tail"] = self.tail

    async def send(self, request: web.Request) -> web.Response:
        """As `bounded_logs` does it."""
        first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
        size = len(self.data)
        start = int(first) if first else max(0, size - int(last))
        if start in self.gap:
            start = self.gap.stop
        stop = self.gap.start if start < self.gap.start else size
        part = self.data[start:stop]
        self.sent += len(part)
        where = f"{start}-{stop - 1}" if part else "*"
        headers = {"Content-Range": f"bytes {where}/{size}"}
        return web.Response(status=206 if part else 416, body=part, headers=headers)

    async def tail(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_bytes(self.data[int(request.query["offset"]) :])
        await websocket.close()
        return websocket


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_end, "FIRST_READ_BYTES", 100)


async def both(server: JobServer, lines: int) -> str:
    """Return the last lines as they are read, which are those that are followed."""
    async with AsyncJobSubmissionClient(server.url) as client:
        text = await client.get_job_logs("a", lines=lines)
        assert "".join([chunk async for chunk in client.tail_job_logs("a", lines=lines)]) == text
    return text


@pytest.mark.parametrize("lines", [0, 1, 2, 7, 500, 1000, 1001, 5000])
async def test_they_are_the_last(server: JobServer, lines: int) -> None:
    Log(server, LOG)
    expected = LOG.splitlines(keepends=True)[-lines:] if lines else []
    assert await both(server, lines) == b"".join(expected).decode()


async def test_no_more_is_sent_than_needed(server: JobServer) -> None:
    log = Log(server, LOG)
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.get_job_logs("a", lines=3)
    assert log.sent <= 100


async def test_no_log(server: JobServer) -> None:
    Log(server, b"")
    assert await both(server, 5) == ""


async def test_a_log_without_ranges_is_read_as_a_whole(server: JobServer) -> None:
    log = Log(server, LOG)

    async def send(_request: web.Request) -> web.Response:
        return web.Response(body=log.data)

    server.overrides["GET", RAW] = send
    assert await both(server, 2) == "999 ä🙂\nno newline"


async def test_what_is_behind_a_gap(server: JobServer) -> None:
    rng = random.Random(1)
    for _ in range(50):
        start = rng.randrange(len(LOG))
        stop = LOG.index(b"\n", rng.randrange(start, len(LOG) - 11)) + 1
        Log(server, LOG, range(start, max(start, stop)))
        behind = LOG[stop:].splitlines(keepends=True)
        lines = rng.choice((1, 5, 900))
        found = (await both(server, lines)).encode()
        assert found == b"".join(behind[-lines:])
        assert gap_notice(1)[:9].encode() not in found


@pytest.mark.parametrize("lines", [-1, True, 1.5, "3"])
async def test_what_is_no_number_of_lines(server: JobServer, lines: int) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest, match="lines"):
            await client.get_job_logs("a", lines=lines)
        with pytest.raises(errors.InvalidRequest, match="lines"):
            await anext(client.tail_job_logs("a", lines=lines))


def test_last_lines() -> None:
    assert log_end.last_lines("a\nb\nc", 2) == "b\nc"
    assert log_end.last_lines("a\nb\n", 1) == "b\n"
    assert log_end.last_lines("a\n", 9) == "a\n"
    assert log_end.last_lines("a\n", 0) == ""
    assert log_end.last_lines("", 3) == ""
    assert log_end.last_lines("\n\n", 1) == "\n"


def test_a_progress_bar_is_one_line() -> None:
    bar = "10%\r20%\r\u2028\x0c30%\n"
    assert log_end.last_lines(f"a\n{bar}b\n", 2) == f"{bar}b\n"
    assert log_end.last_lines(f"a\n{bar}b\n".encode(), 2) == f"{bar}b\n".encode()


async def test_without_start() -> None:
    for length in range(8):

        async def chunks() -> AsyncGenerator[str, None]:
            for chunk in ("ab", "cd", "ef"):
                yield chunk

        found = [chunk async for chunk in log_end.without_start(chunks(), length)]
        assert "".join(found) == "abcdef"[length:]


async def test_who_leaves_a_stream_early_closes_it() -> None:
    closed = []

    async def chunks() -> AsyncGenerator[str, None]:
        try:
            yield "ab"
            yield "cd"
        finally:
            closed.append(True)

    rest = log_end.without_start(chunks(), 1)
    assert await anext(rest) == "b"
    await rest.aclose()
    assert closed == [True]
