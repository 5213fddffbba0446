"""Sending a file, copied by the kernel, in pieces that let the other requests of the loop pass."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import BinaryIO

import aiohttp.web

#: A reader on this machine empties the socket while it is filled: one call for a whole file would
#: keep the loop for as long as that takes. This is some milliseconds.
PIECE_BYTES = 8 * 1024 * 1024
#: What goes with the headers.
FIRST_BYTES = 16 * 1024
#: Where the kernel's copying can't be used, and where a disk must be waited for.
READ_BYTES = 256 * 1024
#: What Linux reads ahead by default: what is in the page cache mostly comes in such parts.
LOOK_EVERY_BYTES = 128 * 1024


async def send_file(
    request: aiohttp.web.Request, file: BinaryIO, headers: Mapping[str, str]
) -> aiohttp.web.StreamResponse:
    """Answer with a file, or with the one range of it that was asked for.

    What is appended meanwhile isn't sent.
    """
    size = os.fstat(file.fileno()).st_size
    part = asked_range(request, size)
    if part is None:
        return aiohttp.web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
    is_part = "Range" in request.headers
    response = aiohttp.web.StreamResponse(status=206 if is_part else 200, headers=headers)
    response.headers["Accept-Ranges"] = "bytes"
    if is_part:
        response.headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    response.content_length = len(part)
    await response.prepare(request)
    if request.method != "HEAD":
        await _send(request, response, file, part)
    await response.write_eof()
    return response


def asked_range(request: aiohttp.web.Request, size: int) -> range | None:
    """Return what a request asks for of a file, or None if there is nothing of that in it."""
    try:
        asked = request.http_range
    except ValueError:
        return None
    if asked.start is None:
        return range(size)
    start = max(0, size + asked.start) if asked.start < 0 else asked.start
    stop = size if asked.stop is None else min(size, asked.stop)
    return range(start, stop) if start < stop else None


async def _send(
    request: aiohttp.web.Request,
    response: aiohttp.web.StreamResponse,
    file: BinaryIO,
    part: range,
) -> None:
    loop = asyncio.get_running_loop()
    first = await asyncio.to_thread(
        os.pread, file.fileno(), min(FIRST_BYTES, len(part)), part.start
    )
    await response.write(first)
    position = part.start + len(first)
    while position < part.stop:
        if request.transport is None:
            raise ConnectionResetError("The client has gone.")
        count = min(PIECE_BYTES, part.stop - position)
        if not _is_in_memory(file.fileno(), position, count):
            await asyncio.to_thread(_bring_to_memory, file.fileno(), position, count)
        try:
            sent = await loop.sendfile(request.transport, file, position, count)
        except (ConnectionError, TimeoutError):  # gone, or dropped as it took nothing
            request.transport.abort()
            raise ConnectionResetError("The client has gone.") from None
        except (NotImplementedError, RuntimeError):  # another kind of loop; a transport that closes
            data = await asyncio.to_thread(
                os.pread, file.fileno(), min(count, READ_BYTES), position
            )
            await response.write(data)
            sent = len(data)
        if not sent:
            # The file has become shorter. The client learns it by the end of the connection.
            request.transport.close()
            return
        position += sent
        await asyncio.sleep(0)


def _is_in_memory(fd: int, position: int, count: int) -> bool:
    """Return whether a part of a file is in the page cache, as far as samples of it tell.

    The kernel's copying would wait for the disk in the event loop.
    """
    if sys.platform != "linux":
        return False
    byte = bytearray(1)
    try:
        for at in (*range(position, position + count, LOOK_EVERY_BYTES), position + count - 1):
            os.preadv(fd, [byte], at, os.RWF_NOWAIT)
    except OSError:  # it isn't, or this file system can't say
        return False
    return True


def _bring_to_memory(fd: int, position: int, count: int) -> None:
    """Read a part of a file into the page cache, and wait for it."""
    for at in range(position, position + count, READ_BYTES):
        os.pread(fd, min(READ_BYTES, position + count - at), at)
