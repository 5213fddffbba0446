"""Following a log over a WebSocket, until the job has ended and all of its log is sent."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol

import aiohttp.web
from aiohttp import WSCloseCode, WSMsgType

from ray_jobs.keepalive import notice_dead_peer
from ray_jobs.timeouts import timeout

from .face import Face
from .foreign_logs import followed, need_log
from .jobs import SubmissionJob
from .log_reader import MAX_FRAME_BYTES, LogFile
from .open_files import need_room

#: A quiet tail sends a ping so often, so that proxies keep the connection. An answer isn't
#: waited for: a client may read slowly, or be paused for hours.
PING_INTERVAL_S = 30.0
#: What a busy job writes within this time goes out together, in seconds: a frame for each of its
#: lines would cost server and client more than the job itself. A line after a pause goes at once.
GATHER_S = 0.005
#: How long a client is given to end its side, in seconds.
CLOSE_PATIENCE_S = 5.0
#: What a client is told that reads so slowly that it hasn't all of a log when that isn't there any
#: more. It would take the end of the stream for the end of the log.
LOG_HAS_LEFT = (
    b"\n[ray-jobs] The rest of this log is not here any more: its job was archived or deleted, or"
    b" the log was removed.\n"
)
#: Clients have nothing to say.
MAX_MESSAGE_BYTES = 64 * 1024

#: Sends a log, until all is sent.
Pump = Callable[[aiohttp.web.WebSocketResponse], Coroutine[Any, Any, None]]

_CLOSED = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class Frames(Protocol):
    """Cuts the bytes of a log into the payloads of frames."""

    def feed(self, data: bytes) -> Iterator[str] | Iterator[bytes]: ...

    def gap(self, dropped: int) -> Iterator[str]: ...

    def end(self, *, is_cut_off: bool) -> Iterator[str]: ...


async def serve_tail(
    face: Face, request: aiohttp.web.Request, job: SubmissionJob, offset: int, frames: Frames
) -> aiohttp.web.WebSocketResponse:
    """Send a log from a byte offset on. Closes with 1000 at its end, with 1001 at a shutdown.

    A slow client is awaited; it costs a bounded buffer, and no other client anything.

    Raises `ServerNotReady` when there is no room for one more.
    """
    need_room(request, stays=True)
    if await face.logs.is_elsewhere(job.record):
        async with contextlib.aclosing(followed(face, job, offset)) as chunks:
            first = await anext(chunks, b"")  # a log that can't be read is an ordinary answer
            return await _serve(
                face, request, functools.partial(_pump_chunks, first, chunks, frames)
            )
    need_log(face, job)
    return await _serve(face, request, functools.partial(_pump, face, job, offset, frames))


async def _serve(
    face: Face, request: aiohttp.web.Request, pump_log: Pump
) -> aiohttp.web.WebSocketResponse:
    websocket = aiohttp.web.WebSocketResponse(
        compress=False, timeout=CLOSE_PATIENCE_S, max_msg_size=MAX_MESSAGE_BYTES
    )
    await websocket.prepare(request)
    notice_dead_peer(request.get_extra_info("socket"))
    pump = asyncio.ensure_future(pump_log(websocket))
    gone = asyncio.ensure_future(_until_gone(websocket))
    closing = asyncio.ensure_future(face.closing.wait())
    tasks = [pump, gone, closing]
    with face.tailing():
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code = WSCloseCode.OK if pump.done() else WSCloseCode.GOING_AWAY
            gone_first = gone.done() and not pump.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if pump.done() and not pump.cancelled() and not gone_first:
            pump.result()
        # A client that reads nothing any more isn't waited for.
        with contextlib.suppress(asyncio.TimeoutError):
            async with timeout(2 * CLOSE_PATIENCE_S):
                await websocket.close(code=code)
    return websocket


async def _pump(
    face: Face,
    job: SubmissionJob,
    offset: int,
    frames: Frames,
    websocket: aiohttp.web.WebSocketResponse,
) -> None:
    path = face.log_path(job)
    if path is None:
        return
    loop = asyncio.get_running_loop()
    log = LogFile(path, face.log_threads, is_bounded=job.record.max_log_bytes is not None)
    with (
        contextlib.closing(log),
        face.growth.waiter(path) as growth,
        face.watch(job, growth.wake),
    ):
        last_sent = loop.time()
        end: int | None = None
        while True:
            # Before reading: when the face knows of the end, the log is complete on the disk.
            has_ended = face.has_ended(job)
            while (piece := await log.read_once(offset, MAX_FRAME_BYTES)).data:
                end = log.seen_bytes if has_ended else None
                dropped, data = piece
                offset += dropped + len(data)
                for notice in frames.gap(dropped) if dropped else ():
                    await _send(websocket, notice)
                for frame in frames.feed(data):
                    await _send(websocket, frame)
                last_sent = loop.time()
                is_behind = has_ended or len(data) == MAX_FRAME_BYTES
                # Sending to a fast client doesn't yield by itself.
                await asyncio.sleep(0 if is_behind else GATHER_S)
            if has_ended and offset != end and log.has_left:
                for frame in frames.feed(LOG_HAS_LEFT):
                    await _send(websocket, frame)
            if has_ended:
                break
            await growth.wait(PING_INTERVAL_S)
            if loop.time() - last_sent >= PING_INTERVAL_S:
                await websocket.ping()
                last_sent = loop.time()
        for frame in frames.end(is_cut_off=face.log_may_be_cut_off(job)):
            await _send(websocket, frame)


async def _pump_chunks(
    first: bytes,
    chunks: AsyncIterator[bytes],
    frames: Frames,
    websocket: aiohttp.web.WebSocketResponse,
) -> None:
    for frame in frames.feed(first):
        await _send(websocket, frame)
    async for chunk in chunks:
        for frame in frames.feed(chunk):
            await _send(websocket, frame)
    for frame in frames.end(is_cut_off=False):
        await _send(websocket, frame)


async def _send(websocket: aiohttp.web.WebSocketResponse, frame: str | bytes) -> None:
    if isinstance(frame, str):
        await websocket.send_str(frame)
    else:
        await websocket.send_bytes(frame)


async def _until_gone(websocket: aiohttp.web.WebSocketResponse) -> None:
    """Return once the client has closed the connection, or is gone. What it says is ignored."""
    while (await websocket.receive()).type not in _CLOSED:
        continue
