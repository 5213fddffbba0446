"""The job's log file on the head node: the server's own lines, and the copy of a remote log."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ray.exceptions import ActorUnavailableError, RayError

from ray_jobs.keeper.clock import wall_ms
from ray_jobs.keeper.files import open_to_write, own_folder
from ray_jobs.log_files import log_name, places
from ray_jobs.manager.calls import GONE, patiently
from ray_jobs.manager.log_bound import LogBound
from ray_jobs.manager.log_shelf import LogShelf
from ray_jobs.manager.seats import Seat
from ray_jobs.manager.times import now_ms
from ray_jobs.records import JobRecord
from ray_jobs.supervisor.bounding import trim_once
from ray_jobs.supervisor.logs import note_that_unbounded, set_aside
from ray_jobs.supervisor.node import HEAD_TOKEN_FILE, read_text

logger = logging.getLogger(__name__)

#: How much of a worker node's log is fetched at once, and how long a fetch waits for more.
COPY_CHUNK_BYTES = 1024 * 1024
COPY_WAIT_S = 30.0
#: Between two pieces of a log that grows line by line: a call for each line would cost both nodes
#: some milliseconds of CPU each time.
COPY_PAUSE_S = 0.02
#: What files and records tell of a time may differ by so much.
CLOCK_MARGIN_MS = 100
#: How long a copy waits before it tries a full or failing disk again.
DISK_RETRY_S = 2.0


class JobLogs:
    """The log files of the jobs on this node, the head.

    Args:
        directory: The session's log folder.
        bound: On the logs of finished jobs together; none if not given.
    """

    def __init__(self, directory: str, bound: LogBound | None = None) -> None:
        self.directory = directory
        self.head_token = uuid.uuid4().hex
        self.shelf = LogShelf(directory)
        self.bound = bound or LogBound(directory, None)

    def mark_head(self, work_dir: str) -> None:
        """Leave a token by which supervisors tell whether their node shares this node's files.

        An earlier manager's is used again, so that a full disk doesn't matter to a later one.
        """
        path = os.path.join(work_dir, HEAD_TOKEN_FILE)
        try:
            own_folder(work_dir)
            found = read_text(path)
            if found:
                self.head_token = found
                return
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, "w") as file:
                file.write(self.head_token)
        except OSError:
            logger.exception("Nodes can't be told that they share the head's files.")

    def path(self, submission_id: str) -> str:
        return os.path.join(self.directory, log_name(submission_id))

    def begin(self, record: JobRecord) -> None:
        """Start the log of a new job. An earlier, deleted job's of the same id is set aside."""
        try:
            for place in places(self.path(record.submission_id)):
                aside = set_aside(place)
                if aside is not None:
                    self.bound.renamed(os.path.basename(place), os.path.basename(aside))
        except OSError:
            logger.exception("The log of an earlier job %s is written on.", record.submission_id)
        self.shelf.count()
        if record.runtime_env:
            self.append(record.submission_id, timestamped("Runtime env is setting up."))

    async def begin_missed(self, records: Sequence[JobRecord]) -> None:
        """Begin the logs of those PENDING jobs whose manager was killed before it did."""
        if records:
            for record in await asyncio.to_thread(self._missed, records):
                self.begin(record)

    def _missed(self, records: Sequence[JobRecord]) -> list[JobRecord]:
        return [record for record in records if self._is_missed(record)]

    def _is_missed(self, record: JobRecord) -> bool:
        """Return whether there is only the log of an earlier job, from before the submission."""
        if abs(now_ms(record) - wall_ms()) > CLOCK_MARGIN_MS:
            return False  # the clock was set: the times of files don't tell
        before_ns = ((record.start_time or 0) - CLOCK_MARGIN_MS) * 1_000_000
        for place in places(self.path(record.submission_id)):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(place).st_mtime_ns < before_ns:
                    return True
        return False

    def append(self, submission_id: str, text: str) -> None:
        """Add the server's own words. A full disk doesn't fail the job."""
        try:
            fd = open_to_write(self.path(submission_id), os.O_APPEND)
            with open(fd, "ab") as file:
                file.write(text.encode("utf-8", "replace"))
        except OSError:
            logger.exception("Can't write to the log of job %s.", submission_id)

    def size(self, submission_id: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self.path(submission_id))
        return 0

    async def copy_remote(self, record: JobRecord, seat: Seat, ended: asyncio.Future[Any]) -> bool:
        """Copy the log of a job on a worker node here while it grows, each byte once.

        Resumes where an earlier manager ended: the position is the size of the file here. Trouble
        with the disk, here or there, or with Ray's object store, through which large pieces go,
        never decides what becomes of the job: once it has `ended`, a copy that fails twice in a row
        is given up, and one of an attempt that couldn't even be started has no end to wait for.
        Returns whether the copy is complete. Raises `Superseded`, and `GONE`.

        What was dropped of the log before it was copied stays dropped: a hole here too.
        """
        offset: int | None = None  # by what is here
        cant_bound: OSError | None = None
        is_last_try = False
        while True:
            try:
                if offset is None:
                    offset = max(0, self.size(record.submission_id) - record.log_base_bytes)
                read = functools.partial(
                    seat.call, "read_log", record.attempt, offset, COPY_CHUNK_BYTES, COPY_WAIT_S
                )
                piece = asyncio.ensure_future(patiently(read, (ActorUnavailableError,)))
                try:
                    await asyncio.wait((piece, ended), return_when=asyncio.FIRST_COMPLETED)
                    if has_failed(ended):
                        return False
                    data, complete, *dropped = await piece
                finally:
                    piece.cancel()
                offset += sum(dropped)
                if data:
                    self._write_at(record.submission_id, record.log_base_bytes + offset, data)
                    if record.max_log_bytes is not None and cant_bound is None:
                        cant_bound = await self._bound(record, record.max_log_bytes)
            except GONE:
                raise
            except (OSError, RayError):
                logger.exception("Can't copy the log of job %s.", record.submission_id)
                if is_last_try:
                    return False
                # Once more: of a node that has died, only the next call is told so.
                is_last_try = ended.done()
                await asyncio.wait([ended], timeout=DISK_RETRY_S)
                offset = None  # what was written of the piece counts
                continue
            is_last_try = False
            offset += len(data)
            if complete:
                if cant_bound is not None:
                    note_that_unbounded(self.path(record.submission_id), cant_bound)
                return True
            if len(data) < COPY_CHUNK_BYTES:
                await asyncio.wait([ended], timeout=COPY_PAUSE_S)

    async def _bound(self, record: JobRecord, max_bytes: int) -> OSError | None:
        """Drop what is too much of a copy. Returns why that can't be done, None if it can."""
        try:
            await trim_once(self.path(record.submission_id), max_bytes, None)
        except OSError as error:
            logger.warning("The log of job %s can't be bounded: %s", record.submission_id, error)
            return error
        return None

    def _write_at(self, submission_id: str, position: int, data: bytes) -> None:
        """Write a piece to its place: a predecessor that isn't quite dead may write it too."""
        fd = open_to_write(self.path(submission_id))
        try:
            left = memoryview(data)
            while left:
                written = os.pwrite(fd, left, position)
                left, position = left[written:], position + written
        finally:
            os.close(fd)


def has_failed(work: asyncio.Future[Any]) -> bool:
    return work.done() and (work.cancelled() or work.exception() is not None)


def timestamped(text: str) -> str:
    now = datetime.now()
    return f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}\tINFO ray-jobs -- {text}\n"
