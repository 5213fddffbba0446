"""The first requests of a client, which do without aiohttp: what may be answered to them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from ray_jobs import errors
from ray_jobs.client.address import parse_address
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.plain import host_and_port, is_enough
from ray_jobs.client.transport import PLAIN_REQUESTS, Transport
from tests.unit.client.job_server import JobServer, job

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    """Yield the address of a server that does what a test says, then closes the connection."""
    serving: list[asyncio.Task[None]] = []

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.ensure_future(serve_and_close(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    await asyncio.gather(*serving)


async def jobs_answered_with(answer: bytes) -> list[str]:
    """Return the ids that a client understands from the bytes of an answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        # Mostly byte by byte: nothing may depend on how an answer is cut into packets.
        size = 1 + len(answer) // 200
        for position in range(0, len(answer), size):
            writer.write(answer[position : position + size])
            await asyncio.sleep(0)

    async with listening(serve) as address, AsyncJobSubmissionClient(address) as client:
        return list(await client.list_jobs())


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 2\r\n\r\n[]",
        OK + b"content-length:2\r\n\r\n[] and more",
        OK + b"\r\n[]",
        b"HTTP/1.0 200\r\n\r\n[]",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
        + OK
        + b"\r\n[]",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1;a=b\r\n]\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n2\r\n[]\r\n0\r\nX-Trailer: a\r\n\r\n",
        OK + b"Content-Encoding: identity\r\n\r\n[]",
    ],
)
async def test_forms_of_an_answer(answer: bytes) -> None:
    assert await jobs_answered_with(answer) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        OK + b"no header\r\n\r\n",
        OK + b" : folded\r\n\r\n",
        OK + b"Content-Length: -2\r\n\r\n[]",
        OK + b"Content-Length: a\r\n\r\n[]",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n[]\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[]\r\n0\r\n\r\n",
        OK + b"Content-Encoding: gzip\r\n\r\n[]",
        b"x" * 200_000,
    ],
)
async def test_what_is_no_http(answer: bytes) -> None:
    with pytest.raises(errors.UnexpectedResponse, match="not answered as HTTP has it") as caught:
        await jobs_answered_with(answer)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        OK,
        OK + b"Content-Length: 3\r\n\r\n[]",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n",
    ],
)
async def test_a_lost_connection(answer: bytes) -> None:
    with pytest.raises(errors.ServerUnreachable, match="connection was lost"):
        await jobs_answered_with(answer)


async def test_silence() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has closed it

    async with listening(silent) as address:
        transport = Transport(parse_address(address), headers={}, cookies={}, verify=True)
        with pytest.raises(errors.ServerUnreachable, match="wasn't answered in time"):
            await transport.request("GET", "/", read_timeout=0.05)


async def test_cancelling_closes_the_connection() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        closed.set()

    async with listening(silent) as address, AsyncJobSubmissionClient(address) as client:
        asking = asyncio.ensure_future(client.list_jobs())
        await asyncio.wait_for(asked.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(closed.wait(), 5)


async def test_a_large_body(server: JobServer) -> None:
    server.jobs["a"] = job("a")
    server.logs["a"] = b"0123456789" * 1_000_000
    async with AsyncJobSubmissionClient(server.url) as client:
        assert (await client.get_job_logs("a")).encode() == server.logs["a"]


async def test_a_large_submission_that_is_refused_before_it_was_read(server: JobServer) -> None:
    server.answer("POST", "/api/jobs/", 413, "too large")
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.TooLarge):
            await client.submit_job(entrypoint="true", metadata={str(n): "x" for n in range(5000)})


async def test_cookies_of_the_first_answer_are_kept(server: JobServer) -> None:
    """As a load balancer wants it, which sends a client to the same server with its cookie."""

    async def handler(_request: web.Request) -> web.Response:
        answer = web.json_response([])
        answer.set_cookie("route", "a=b", path="/")
        answer.set_cookie("elsewhere", "c", path="/elsewhere")
        answer.headers.add("Set-Cookie", "no/cookie=d")
        return answer

    server.overrides["GET", "/api/jobs/"] = handler
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.list_jobs()
        await client.list_jobs()
    assert "Cookie" not in server.headers[0]
    assert server.headers[1]["Cookie"] == "route=a=b"


@pytest.mark.parametrize("name", ["Connection", "accept-encoding", "Host"])
async def test_headers_with_a_meaning_to_the_connection(server: JobServer, name: str) -> None:
    async with AsyncJobSubmissionClient(server.url, headers={name: "identity"}) as client:
        assert await client.list_jobs() == {}
    assert server.headers[0][name.title()] == "identity"


@pytest.mark.parametrize(
    ("netloc", "expected"),
    [
        ("host", ("host", 80)),
        ("host:8265", ("host", 8265)),
        ("[::1]", ("::1", 80)),
        ("[::1]:8265", ("::1", 8265)),
    ],
)
def test_host_and_port(netloc: str, expected: tuple[str, int]) -> None:
    assert host_and_port(netloc) == expected


@pytest.mark.parametrize(
    ("url", "host", "headers"),
    [
        ("https://host/api/jobs/", "host", {}),
        ("http://hôst/api/jobs/", "hôst", {}),
        ("http://host/a b/api/jobs/", "host", {}),
        ("http://[fe80::1%eth0]/api/jobs/", "fe80::1%eth0", {}),
        ("http://host/api/jobs/", "host", {"TRANSFER-ENCODING": "x"}),
    ],
)
def test_what_takes_aiohttp(url: str, host: str, headers: dict[str, str]) -> None:
    assert is_enough("http://host/api/jobs/", "host", {"Authorization": "Bearer a"})
    assert not is_enough(url, host, headers)


def test_a_submission_at_a_shell_does_not_import_aiohttp(server: JobServer) -> None:
    code = (
        "import sys; from ray_jobs import JobSubmissionClient\n"
        f"with JobSubmissionClient({server.url!r}) as client:\n"
        "    client.submit_job(entrypoint='true')\n"
        "print(*sys.modules)"
    )
    imported = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert len(server.submissions) == 1
    assert not imported & {"aiohttp", "yarl", "urllib.request", "http.client", "rich", "yaml"}


async def test_who_makes_many_requests_uses_connections_again(server: JobServer) -> None:
    peers: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.json_response([])

    server.overrides["GET", "/api/jobs/"] = handler
    async with AsyncJobSubmissionClient(server.url) as client:
        for _ in range(PLAIN_REQUESTS + 5):
            await client.list_jobs()
    assert len(set(peers)) == PLAIN_REQUESTS + 1
