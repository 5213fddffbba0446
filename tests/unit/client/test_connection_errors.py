from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator

import aiohttp
import pytest

from ray_jobs import errors
from ray_jobs.client.address import parse_address
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.connection_errors import MAPPING, mapped
from tests.unit.client.job_server import JobServer


def subclasses(error_class: type[BaseException]) -> Iterator[type[BaseException]]:
    yield error_class
    for one in error_class.__subclasses__():
        yield from subclasses(one)


def test_every_exception_of_aiohttp_is_mapped() -> None:
    unmapped = {
        one.__name__
        for one in subclasses(aiohttp.ClientError)
        if one.__module__.startswith("aiohttp") and one.__name__ not in MAPPING
    }
    assert unmapped == set()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (aiohttp.ServerDisconnectedError(), errors.ServerUnreachable),
        (aiohttp.ClientPayloadError("cut"), errors.ServerUnreachable),
        (aiohttp.ServerTimeoutError(), errors.ServerUnreachable),
        (asyncio.TimeoutError(), errors.ServerUnreachable),
        (ConnectionResetError(), errors.ServerUnreachable),
        (ssl.SSLError("bad"), errors.ServerUnreachable),
        (aiohttp.InvalidURL("x"), errors.InvalidAddress),
    ],
)
def test_mapping(raised: BaseException, expected: type[errors.RayJobsError]) -> None:
    with pytest.raises(expected) as caught, mapped("GET x", parse_address("host")):
        raise raised
    assert caught.value.__cause__ is raised


def test_our_own_errors_pass() -> None:
    with pytest.raises(errors.JobNotFound), mapped("GET x", parse_address("host")):
        raise errors.JobNotFound


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def list_jobs(address: str) -> None:
    async with AsyncJobSubmissionClient(address) as client:
        await client.list_jobs()


async def test_nobody_listens() -> None:
    with pytest.raises(errors.ServerUnreachable, match="No job server answers") as caught:
        await list_jobs(f"http://user:secret@127.0.0.1:{free_port()}")
    assert caught.value.hint
    assert "secret" not in str(caught.value)


async def test_no_such_host() -> None:
    with pytest.raises(errors.ServerUnreachable, match=r"no-such-host\.invalid"):
        await list_jobs("http://no-such-host.invalid")


@pytest.mark.parametrize("answer", [b"", b"PRI * HTTP/2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_something_else_listens(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises((errors.ServerUnreachable, errors.UnexpectedResponse)) as caught:
            await list_jobs(f"http://127.0.0.1:{port}")
    assert len(str(caught.value)) < 300


async def test_certificate_that_nobody_signed(tls_server: JobServer) -> None:
    with pytest.raises(errors.ServerUnreachable, match="secure connection") as caught:
        await list_jobs(tls_server.url)
    assert "verify" in (caught.value.hint or "")


async def test_https_where_http_is_spoken(server: JobServer) -> None:
    with pytest.raises(errors.ServerUnreachable):
        await list_jobs(server.url.replace("http:", "https:"))
