"""Logs that aren't on the head: those of jobs of Ray's own server that ran on another node.

Our own jobs' logs are copied to the head. Ray's stay where they are, and are fetched from there.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncGenerator, AsyncIterator

from ray_jobs.errors import RayJobsError
from ray_jobs.log_files import places

from .face import Face
from .jobs import SubmissionJob
from .log_reader import escaped


class LogUnavailable(RayJobsError):
    """The log can't be fetched from its node."""

    code = "log_unavailable"
    http_status = 404  # clients take a 502 for a proxy's own word


def need_log(face: Face, job: SubmissionJob) -> None:
    """Raise `LogUnavailable` if a job that ran on one of our supervisors has no log here any more.

    The head may have been started again on another disk, with the jobs that it had in the KV.
    """
    record = job.record
    if record.foreign or record.driver_node_id is None or not record.status.is_terminal():
        return
    path = face.log_path(job)
    if path is not None and not any(map(os.path.exists, places(path))):
        raise LogUnavailable(
            f"The log of job {job.id} isn't on the head node: it was deleted, or the head was"
            " started again without its files."
        )


async def json_pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a log as the inside of a JSON string. Invalid UTF-8 is replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for chunk in chunks:
        yield escaped(decoder.decode(chunk))
    yield escaped(decoder.decode(b"", final=True))


async def followed(face: Face, job: SubmissionJob, offset: int) -> AsyncGenerator[bytes, None]:
    """Yield a log from a byte offset on until the job has ended and all of it was yielded."""
    position = 0
    if not face.has_ended(job):
        async for chunk in _until_it_ends(face, job):
            yield chunk[max(0, offset - position) :]
            position += len(chunk)
    offset = max(offset, position)
    position = 0
    async for chunk in face.logs.read(job.record, follow=False):
        yield chunk[max(0, offset - position) :]
        position += len(chunk)


async def _until_it_ends(face: Face, job: SubmissionJob) -> AsyncIterator[bytes]:
    end = asyncio.ensure_future(_end_of(face, job))
    chunks = face.logs.read(job.record, follow=True)
    next_chunk: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            next_chunk = asyncio.ensure_future(anext(chunks, None))
            await asyncio.wait([next_chunk, end], return_when=asyncio.FIRST_COMPLETED)
            chunk = next_chunk.result() if next_chunk.done() else None
            if chunk is None:
                return
            yield chunk
    finally:
        for task in (end, next_chunk):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])


async def _end_of(face: Face, job: SubmissionJob) -> None:
    changed = asyncio.Event()
    with face.watch(job, changed.set):
        while not face.has_ended(job):
            await changed.wait()
            changed.clear()
