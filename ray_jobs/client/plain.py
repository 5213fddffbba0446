"""One request over plain HTTP/1.1, on a connection of its own.

For the first requests of a client: importing aiohttp takes 0.1 s, many times what a submission
takes, and a command at a shell makes few requests. What isn't as simple as that (TLS, proxies,
cookies, uploads, WebSockets) is aiohttp's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from multidict import CIMultiDict

from ray_jobs.timeouts import timeout

T = TypeVar("T")

#: Until the second address of a host is tried beside the first, as RFC 8305 has it.
HAPPY_EYEBALLS_DELAY_S = 0.25
#: How much is read at once of a body.
READ_BYTES = 1 << 20

_STATUS_LINE = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\Z)")
_VISIBLE = re.compile(r"[!-~]+\Z")
#: A user's own values of these would change how the answer is to be read.
_OUR_HEADERS = {
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
}


class NotConnectedError(Exception):
    """There is no connection, so nothing was sent."""


class NotHttpError(Exception):
    """What came is not an answer as HTTP/1.1 has it."""


def is_enough(url: str, host: str, headers: Mapping[str, str]) -> bool:
    """Return whether `exchange` can do this request.

    Args:
        url: Percent-encoded.
        host: Of the URL, without brackets.
    """
    return (
        url.startswith("http://")
        # Anything else wants to be encoded, or is an address with a zone.
        and bool(_VISIBLE.match(url))
        and "%" not in host
        and not any(name.lower() in _OUR_HEADERS for name in headers)
    )


async def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    connect_timeout: float,
    read_timeout: float,
) -> tuple[int, CIMultiDict[str], bytes]:
    """Send a request, and return the status, headers and body of its answer.

    Args:
        url: One for which this `is_enough`.
        connect_timeout: In seconds.
        read_timeout: Seconds of silence after which the server is given up.

    Raises:
        NotConnectedError: the server can't be reached; nothing was sent.
        NotHttpError: it speaks something else.
        asyncio.TimeoutError: it is silent; aiohttp.ConnectionTimeoutError: already when it was to
            be connected to.
        OSError: the connection was lost.
    """
    netloc, _, target = url.removeprefix("http://").partition("/")
    reader, writer = await _connect(netloc, connect_timeout)
    try:
        writer.write(_head(method, f"/{target}", netloc, headers, body) + (body or b""))
        return await _Answer(reader, read_timeout).read()
    finally:
        writer.transport.abort()


async def _connect(
    netloc: str, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with timeout(timeout_s):
            return await asyncio.open_connection(
                *host_and_port(netloc), happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S
            )
    except asyncio.TimeoutError as error:
        from aiohttp import ConnectionTimeoutError

        raise ConnectionTimeoutError(f"Connection timeout to {netloc}") from error
    except OSError as error:
        raise NotConnectedError from error


def host_and_port(netloc: str) -> tuple[str, int]:
    """Return the two parts of `host`, `host:port`, `[address]` or `[address]:port`."""
    host, colon, port = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        host, port = netloc, "80"
    return host.strip("[]"), int(port)


def _head(
    method: str, target: str, netloc: str, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    lines = {"Host": netloc, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    if body is not None or method in ("POST", "PUT"):
        lines["Content-Length"] = str(len(body or b""))
    given = {name.lower() for name in headers}
    lines = {name: value for name, value in lines.items() if name.lower() not in given}
    text = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **headers}.items())
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode()


class _Answer:
    """Reads an answer, with a limit to the silence in it."""

    def __init__(self, reader: asyncio.StreamReader, timeout_s: float) -> None:
        self._reader = reader
        self._timeout_s = timeout_s

    async def read(self) -> tuple[int, CIMultiDict[str], bytes]:
        """Return status, headers and body."""
        try:
            status, headers = await self._head()
            while status < 200:  # "go on", "early hints"
                status, headers = await self._head()
            return status, headers, await self._body(status, headers)
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("it was closed before the whole answer came") from error
        except asyncio.LimitOverrunError as error:
            raise NotHttpError("an endless line") from error

    async def _wait(self, reading: Awaitable[T]) -> T:
        async with timeout(self._timeout_s):
            return await reading

    async def _head(self) -> tuple[int, CIMultiDict[str]]:
        text = (await self._wait(self._reader.readuntil(b"\r\n\r\n"))).decode("utf-8", "replace")
        first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
        found = _STATUS_LINE.match(first)
        if found is None:
            raise NotHttpError(f"it began with {first[:40]!a}")
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not _VISIBLE.match(name):
                raise NotHttpError(f"a header was {line[:40]!a}")
            headers.add(name, value.strip(" \t"))
        return int(found[1]), headers

    async def _body(self, status: int, headers: CIMultiDict[str]) -> bytes:
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise NotHttpError("the body is compressed, though that wasn't asked for")
        if status in (204, 304):
            return b""
        coding = headers.get("Transfer-Encoding", "").lower()
        if coding:
            if coding != "chunked":
                raise NotHttpError(f"its transfer coding is {coding[:40]!a}")
            return await self._chunks()
        length = headers.get("Content-Length")
        if length is None:
            return await self._rest()
        return await self._exactly(_number(length, 10))

    async def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = await self._wait(self._reader.read(min(count, READ_BYTES)))
            if not piece:
                raise asyncio.IncompleteReadError(b"", count)
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    async def _rest(self) -> bytes:
        pieces = []
        while piece := await self._wait(self._reader.read(READ_BYTES)):
            pieces.append(piece)
        return b"".join(pieces)

    async def _chunks(self) -> bytes:
        pieces = []
        while size := _number((await self._line()).partition(";")[0].strip(), 16):
            pieces.append(await self._exactly(size))
            if await self._line():
                raise NotHttpError("a chunk is longer than it says")
        while await self._line():  # trailers
            pass
        return b"".join(pieces)

    async def _line(self) -> str:
        return (await self._wait(self._reader.readuntil(b"\r\n")))[:-2].decode("ascii", "replace")


def _number(text: str, base: int) -> int:
    if not re.fullmatch(r"[0-9A-Fa-f]{1,15}", text):
        raise NotHttpError(f"a length is {text[:40]!a}")
    try:
        return int(text, base)
    except ValueError:
        raise NotHttpError(f"a length is {text[:40]!a}") from None
