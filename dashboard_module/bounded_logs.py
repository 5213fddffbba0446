"""Sending raw logs of which the middle may be dropped, while they are sent too."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp.web

from ray_jobs.models import gap_notice

from .file_sender import asked_range
from .log_reader import LogFile

READ_BYTES = 256 * 1024


async def send_bounded_log(
    request: aiohttp.web.Request, log: LogFile, headers: Mapping[str, str]
) -> aiohttp.web.StreamResponse:
    """Answer with what is kept of a log, and a line in place of the rest; or with one range.

    A range begins with the first byte of it that is kept, and ends where kept bytes end:
    `Content-Range` says which they are. 416 if none is.
    """
    size = log.size()
    if "Range" not in request.headers:
        return await _send_whole(request, log, size, headers)
    part = asked_range(request, size)
    first = await log.read(part.start, min(READ_BYTES, len(part))) if part else None
    start = part.start + first.dropped if part and first else size
    if part is None or first is None or not first.data or start >= part.stop:
        return aiohttp.web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
    stop = min(part.stop, log.end_of_kept(start))
    response = aiohttp.web.StreamResponse(status=206, headers=headers)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.content_length = stop - start
    await response.prepare(request)
    data = first.data[: stop - start]
    while request.method != "HEAD":
        await response.write(data)
        start += len(data)
        if start >= stop:
            break
        dropped, data = await log.read(start, min(READ_BYTES, stop - start))
        if dropped or not data:
            # Dropped just now. The client learns it by the end of the connection.
            if request.transport is not None:
                request.transport.close()
            return response
    await response.write_eof()
    return response


async def _send_whole(
    request: aiohttp.web.Request, log: LogFile, size: int, headers: Mapping[str, str]
) -> aiohttp.web.StreamResponse:
    response = aiohttp.web.StreamResponse(headers=headers)
    await response.prepare(request)
    offset = 0
    while request.method != "HEAD" and offset < size:
        dropped, data = await log.read(offset, min(READ_BYTES, size - offset))
        if not data:
            break
        if dropped:
            await response.write(gap_notice(dropped).encode())
        await response.write(data)
        offset += dropped + len(data)
    await response.write_eof()
    return response
