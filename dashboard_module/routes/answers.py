"""What handlers share: reading bodies and queries, and encoding answers."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import IO

import aiohttp.web
import msgspec

from ray_jobs import errors
from ray_jobs.timeouts import timeout

from ..guard.origins import ANSWER_HEADERS

#: Of answers that are begun by their handlers; the guard adds what is needed to all others.
JSON_HEADERS = {**ANSWER_HEADERS, "Content-Type": "application/json; charset=utf-8"}
RAW_LOG_HEADERS = {
    **ANSWER_HEADERS,
    "Cache-Control": "no-store",
    "Content-Type": "text/plain; charset=utf-8",
}
#: A client that sends nothing of its body for so long is given up, in seconds.
BODY_STALL_S = 60.0
#: And one that, after some time, has sent less than this on the average.
BODY_GRACE_S = 300.0
MIN_BODY_BYTES_PER_S = 32 * 1024
#: Written to a file at once, off the event loop.
WRITE_BATCH_BYTES = 256 * 1024


def json_answer(value: object, headers: Mapping[str, str] | None = None) -> aiohttp.web.Response:
    """Return a value as JSON."""
    return json_bytes(msgspec.json.encode(value), headers)


def json_bytes(body: bytes, headers: Mapping[str, str] | None = None) -> aiohttp.web.Response:
    """Return what is JSON already."""
    return aiohttp.web.Response(
        body=body, headers=headers, content_type="application/json", charset="utf-8"
    )


async def stream_answer(
    request: aiohttp.web.Request,
    headers: Mapping[str, str],
    first: bytes,
    rest: AsyncIterator[bytes],
    last: bytes = b"",
) -> aiohttp.web.StreamResponse:
    """Send a body in pieces. `headers` name its type."""
    response = aiohttp.web.StreamResponse(headers=headers)
    await response.prepare(request)
    if request.method != "HEAD":  # aiohttp would send it all the same
        await response.write(first)
        async for piece in rest:
            await response.write(piece)
        if last:
            await response.write(last)
    await response.write_eof()
    return response


async def read_body(
    request: aiohttp.web.Request, limit: int, too_large: Callable[[str], errors.TooLarge]
) -> bytes:
    """Return a whole body. As `receive_body`."""
    file = io.BytesIO()
    await receive_body(request, limit, too_large, file)
    return file.getvalue()


async def receive_body(
    request: aiohttp.web.Request,
    limit: int,
    too_large: Callable[[str], errors.TooLarge],
    file: IO[bytes],
) -> None:
    """Write a body to a file as it comes, of any size up to `limit` bytes.

    `request.read()` would hold it to the limit of the whole application.

    Args:
        too_large: Makes the exception for a body over the limit from its message.

    Raises:
        TooLarge: at once when the request names its length.
        InvalidRequest: the client has stopped sending, or sends a byte now and then.
        ServerNotReady: the disk is full.
    """
    message = f"The body is over the limit of {limit:,} bytes."
    if request.content_length is not None and request.content_length > limit:
        raise too_large(message)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    size = 0
    batch: list[bytes] = []
    try:
        while chunk := await _next_chunk(
            request, begun + BODY_GRACE_S + size / MIN_BODY_BYTES_PER_S
        ):
            size += len(chunk)
            if size > limit:
                raise too_large(message)
            batch.append(chunk)
            if isinstance(file, io.BytesIO):
                file.writelines(batch)
                batch.clear()
            elif sum(map(len, batch)) >= WRITE_BATCH_BYTES:
                await asyncio.to_thread(file.writelines, batch)
                batch.clear()
        if batch:
            await asyncio.to_thread(file.writelines, batch)
    finally:
        batch.clear()  # an exception would keep it, until the garbage is collected


async def _next_chunk(request: aiohttp.web.Request, deadline: float) -> bytes:
    """Return what has come of a body; nothing at its end.

    Args:
        deadline: When its bytes so far would have been too slow, by the event loop's clock.
    """
    remaining_s = deadline - asyncio.get_running_loop().time()
    try:
        async with timeout(max(0, min(BODY_STALL_S, remaining_s))):
            return await request.content.readany()
    except asyncio.TimeoutError:
        raise errors.InvalidRequest(
            f"The body stalled: no byte came for {BODY_STALL_S:.0f} s, or less than"
            f" {MIN_BODY_BYTES_PER_S:,} bytes a second."
        ) from None


def integer(request: aiohttp.web.Request, name: str, low: int, high: int) -> int | None:
    """Return a whole number of the query, None if it isn't there. Raises `InvalidRequest`."""
    text = request.query.get(name)
    if text is None:
        return None
    # Only ASCII digits, and not more than Python turns into a number.
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise errors.InvalidRequest(
        f"{name} must be a whole number from {low} to {high}, got {text[:40]!r}."
    )


def seconds(request: aiohttp.web.Request, name: str, default: float, high: float) -> float:
    """Return a time of the query, cut to `high`. Raises `InvalidRequest`."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:  # NaN too
        raise errors.InvalidRequest(
            f"{name} must be a number of seconds of at least 0, got {text[:40]!r}."
        )
    return min(value, high)
