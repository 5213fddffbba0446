"""Following the log of a job over a WebSocket."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import time
from collections.abc import AsyncGenerator

import aiohttp
import msgspec

from ray_jobs import errors
from ray_jobs.client.connection_errors import mapped
from ray_jobs.client.retry import PASSING, Outage, RetryPolicy
from ray_jobs.client.transport import Transport, WebSocket, quoted
from ray_jobs.keepalive import notice_dead_peer
from ray_jobs.models import API_PREFIX, CUT_OFF_NOTICE, LogNote, gap_notice
from ray_jobs.timeouts import timeout

#: A connection that lasted so long counts as a success, though it brought nothing.
LASTING_S = 5.0

CLOSE_TIMEOUT_S = 1.0


async def tail(
    transport: Transport, job_id: str, policy: RetryPolicy, offset: int = 0
) -> AsyncGenerator[str, None]:
    """Follow a log on our server, from its first byte to its last.

    A lost connection is opened anew where the stream broke off: no byte is lost or comes twice.

    Args:
        offset: The byte to begin with.

    Raises:
        JobNotFound: there is no such job.
        LogStreamInterrupted: the server didn't come back within the policy's window.
    """
    path = f"{API_PREFIX}/jobs/{quoted(job_id)}/logs/tail"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    outage = Outage(policy)
    is_cut_off = False
    while True:
        opened: float | None = None
        try:
            connection = await transport.websocket(path, f"offset={offset}")
            opened = time.monotonic()
            try:
                _keep_alive(connection)
                while (data := await _next_frame(transport, connection)) is not None:
                    outage.over()
                    if isinstance(data, str):
                        note = msgspec.json.decode(data, type=LogNote)
                        is_cut_off = is_cut_off or note.cut_off
                        if note.dropped:
                            offset += note.dropped
                            yield decoder.decode(b"", final=True) + gap_notice(note.dropped)
                        continue
                    offset += len(data)
                    text = decoder.decode(data)
                    if text:
                        yield text
            finally:
                await _close(connection)
            if connection.close_code == aiohttp.WSCloseCode.OK:
                break
            failure: errors.RayJobsError = errors.ServerUnreachable(
                f"The log stream was closed with code {connection.close_code}."
            )
        except PASSING as error:
            failure = error
        if opened is not None and time.monotonic() - opened > LASTING_S:
            outage.over()
        try:
            await outage.survive(failure)
        except errors.RayJobsError as error:
            raise interrupted(job_id, offset, error) from error
    # Told once, though the connection may be lost after it was heard of.
    rest = decoder.decode(b"", final=True) + (CUT_OFF_NOTICE if is_cut_off else "")
    if rest:
        yield rest


def interrupted(
    job_id: str, offset: int, error: errors.RayJobsError
) -> errors.LogStreamInterrupted:
    """Return what is raised when a stream isn't taken up again."""
    return errors.LogStreamInterrupted(
        f"The log stream of {job_id} broke off after {offset} bytes: {error}",
        hint=f"The job goes on. Its whole log: get_job_logs({job_id!r}).",
    )


async def tail_stock(transport: Transport, job_id: str) -> AsyncGenerator[str, None]:
    """Follow a log on Ray's own server, which can't take up a stream where it broke off.

    Raises:
        JobNotFound: there is no such job.
        LogStreamInterrupted: the connection was lost.
    """
    connection = await transport.websocket(f"/api/jobs/{quoted(job_id)}/logs/tail")
    cause: errors.RayJobsError | None = None
    try:
        _keep_alive(connection)
        while (data := await _next_frame(transport, connection)) is not None:
            yield data if isinstance(data, str) else data.decode("utf-8", "replace")
    except errors.ServerUnreachable as error:
        cause = error
    finally:
        await _close(connection)
    if cause is not None or connection.close_code != aiohttp.WSCloseCode.OK:
        reason = str(cause) if cause else f"it was closed with code {connection.close_code}"
        raise errors.LogStreamInterrupted(
            f"The log stream of {job_id} broke off: {reason.rstrip('.')}.",
            hint=f"The job goes on. Its log so far: get_job_logs({job_id!r}).",
        ) from cause


async def _next_frame(transport: Transport, connection: WebSocket) -> bytes | str | None:
    """Return the payload of the next frame; None when the connection ended, however it did."""
    with mapped(f"the log stream from {transport.address.url}", transport.address):
        message = await connection.receive()
    if message.type is aiohttp.WSMsgType.BINARY:
        return bytes(message.data)
    if message.type is aiohttp.WSMsgType.TEXT:
        return str(message.data)
    return None


async def _close(connection: WebSocket) -> None:
    """Close a WebSocket, soon: Ray's own server never reads that we want to."""
    with contextlib.suppress(asyncio.TimeoutError):
        async with timeout(CLOSE_TIMEOUT_S):
            await connection.close()


def _keep_alive(connection: WebSocket) -> None:
    """Have the kernel notice a peer that vanished: a quiet job sends nothing for hours.

    No pings of the protocol, since Ray's own server never reads them.
    """
    notice_dead_peer(connection.get_extra_info("socket"))
