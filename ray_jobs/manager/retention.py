"""Finished jobs that are kept no longer: into the archive first, then out of the KV.

In this order: the lines of the jobs are in the archive, for good; their logs are; the jobs are
removed; and their logs. A manager that is killed in between does it again, so a job may be there
twice, never not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ray_jobs.keeper.clock import boot_ms, wall_ms
from ray_jobs.kv import Superseded, together
from ray_jobs.log_files import close_all, is_link, is_removed_log, open_log, places
from ray_jobs.log_holes import has_hole
from ray_jobs.manager.archive import (
    Archive,
    BadArchive,
    FolderArchive,
    UnreadableLog,
    archived_bytes,
    open_archive,
)
from ray_jobs.manager.archive_line import FoundLog, archive_line, archived_log
from ray_jobs.manager.finished_jobs import Ended, FinishedJobs, RetentionSettings
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal, is_same_job
from ray_jobs.manager.times import ended_boot_ms
from ray_jobs.records import JobRecord
from ray_jobs.scrubbing import scrubbed
from ray_jobs.timeouts import timeout

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Where the archive is if no place is given for it, in the session's log folder.
ARCHIVE_FOLDER = "ray_jobs_archive"
#: The first job that is to leave waits so long for others: each batch is a file of its own.
GATHER_S = 5.0
#: Unless there are so many, the most of a batch.
BATCH_JOBS = 1_000
#: A file of the archive ends with the job that makes it so large.
FILE_BYTES = 8 * 1024 * 1024
#: Jobs that leave the KV in one write, and the logs that are moved before it.
SLICE_JOBS = 50
#: Logs that are copied at once, of which the data is awaited on the disk, or which are copied.
COPIES_AT_ONCE = 16
#: Timers are no longer, since clocks may be set.
LONGEST_WAIT_S = 3600.0
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0


class Retention:
    """Has finished jobs leave, in a task that runs while there are some that will.

    Args:
        logs: The log files of the jobs.
        default: The folder for the archive if the settings name none.
    """

    def __init__(
        self, settings: RetentionSettings, journal: Journal, logs: JobLogs, default: Path
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._logs = logs
        self._default = default
        self._jobs = FinishedJobs(settings)
        self._archive: Archive | None = None
        self._files = 0
        self._life = uuid.uuid4().hex[:8]
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self, records: Iterable[JobRecord]) -> None:
        """Begin, with the jobs that are there. No-op where all jobs are kept."""
        if self._settings.is_on:
            self._jobs.add_all(
                _ended(each) for each in records if each.status.is_terminal() and not each.foreign
            )
            self._task = asyncio.ensure_future(self._run())

    def ended(self, record: JobRecord) -> None:
        """Note that a job has ended, and that nothing is left to be done for it."""
        if self._task is not None:
            self._jobs.add(_ended(record))
            # Later ones than the first change no timer.
            if len(self._jobs) == 1 or self._jobs.due_in_ms(boot_ms()) == 0:
                self._due.set()

    def deleted(self, record: JobRecord) -> None:
        """Note that a job was deleted."""
        self._jobs.discard(record.submission_id, record.attempt)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # --- the task -----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            self._archive = await asyncio.to_thread(
                open_archive, self._settings.archive, self._default
            )
            while True:
                await self._until_due()
                await asyncio.sleep(GATHER_S)
                is_full = True
                while is_full:
                    batch = self._jobs.take(boot_ms(), BATCH_JOBS)
                    is_full = len(batch) == BATCH_JOBS
                    await self._leave([each for job in batch if (each := self._record(job))])
        except BadArchive as error:
            place = scrubbed(self._settings.archive)
            logger.error("All finished jobs are kept. RAY_JOBS_ARCHIVE=%s: %s.", place, error)
        except Superseded:
            self._journal.give_way()
        except Exception:
            logger.exception("All finished jobs are kept from now on.")
        finally:
            self._task = None

    async def _until_due(self) -> None:
        while (due_in_ms := self._jobs.due_in_ms(boot_ms())) != 0:
            self._due.clear()
            wait_s = LONGEST_WAIT_S if due_in_ms is None else due_in_ms / 1000
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(min(wait_s, LONGEST_WAIT_S)):
                    await self._due.wait()

    def _record(self, job: Ended) -> JobRecord | None:
        """Return a job that is still there, and still the same."""
        record = self._journal.staying(job.submission_id)
        return record if record is not None and record.attempt == job.attempt else None

    async def _leave(self, records: list[JobRecord]) -> None:
        """Have jobs leave, in as many files as it takes."""
        while records:
            count, leaving = await self._until_done(
                functools.partial(self._write, self._new_name(), records)
            )
            for start in range(0, len(leaving), SLICE_JOBS):
                part = leaving[start : start + SLICE_JOBS]
                await self._until_done(functools.partial(self._move_out, part))
            records = records[count:]

    async def _until_done(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step, however long the archive fails. Meanwhile the jobs stay where they are."""
        delay_s, has_failed = FIRST_RETRY_S, False
        while True:
            try:
                result = await step()
            except Superseded:
                raise
            except Exception as error:  # noqa: BLE001 - of any file system that fsspec knows
                if not has_failed:
                    logger.warning(
                        "The archive of finished jobs, %s, fails: %s. They are kept until it"
                        " works; it is tried again.",
                        scrubbed(self._settings.archive or str(self._default)),
                        scrubbed(f"{type(error).__name__}: {error}"),
                    )
                has_failed = True
            else:
                if has_failed:
                    logger.warning("The archive of finished jobs works again.")
                return result
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_RETRY_S, delay_s * 2)

    # --- lines --------------------------------------------------------------------------------

    async def _write(self, name: str, records: Sequence[JobRecord]) -> tuple[int, list[JobRecord]]:
        """Write a file with the lines of the first jobs.

        Returns of how many, and those of them that leave: not those that are gone, nor one whose
        log can't be read.

        What a line tells of a log holds, so its text isn't removed any more to bound all logs.
        """
        bound = self._logs.bound
        sizes = bound.forget(each.submission_id for each in records)
        leaving: list[JobRecord] = []
        try:
            count, leaving = await asyncio.to_thread(self._write_lines, name, records)
            return count, leaving
        finally:
            ids = {each.submission_id for each in leaving}
            bound.remember({each: size for each, size in sizes.items() if each not in ids})

    def _write_lines(self, name: str, records: Sequence[JobRecord]) -> tuple[int, list[JobRecord]]:
        """Write a file with the lines of the first jobs. Returns as `_write`."""
        lines: list[bytes] = []
        leaving: list[JobRecord] = []
        size = count = 0
        for record in records:
            count += 1
            try:
                log = self._find_log(record)
            except UnreadableLog as error:
                _tell_kept(record, error)
                continue
            # Looked at after its log: that might be the one of a new job with this id.
            if self._is_there(record):
                leaving.append(record)
                lines.append(archive_line(record, log, wall_ms()))
                size += len(lines[-1])
            if size >= FILE_BYTES:
                break
        if lines:
            self._opened.write(name, b"".join(lines))
        return count, leaving

    def _is_there(self, record: JobRecord) -> bool:
        return is_same_job(record, self._journal.get(record.submission_id))

    def _find_log(self, record: JobRecord) -> FoundLog | None:
        path = self._logs.path(record.submission_id)
        with _reading_log():
            if is_removed_log(path):
                return FoundLog(0, was_removed=True)
            fd = open_log(path)
        if fd is None:
            return None
        try:
            return FoundLog(archived_bytes(fd, record.max_log_bytes is not None))
        finally:
            os.close(fd)

    def _new_name(self) -> str:
        self._files += 1
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return f"jobs-{now}-{self._journal.epoch}-{self._files}-{self._life}.jsonl"

    # --- moving out ---------------------------------------------------------------------------

    async def _move_out(self, records: Sequence[JobRecord]) -> None:
        """Have logs in the archive, then remove their jobs from the KV, then their logs here.

        A job that is listed has its log, however long the KV takes.
        """
        found = await asyncio.to_thread(self._keep_logs, records)
        leaving = [each for each in records if each.attempt in found and self._is_there(each)]
        await together(*(self._journal.delete(each) for each in leaving))
        held: list[int] = []
        for record in leaving:
            held += self._drop_log(record, found[record.attempt])
        await asyncio.to_thread(close_all, held)

    def _keep_logs(self, records: Sequence[JobRecord]) -> dict[str, os.stat_result | None]:
        """Have logs in the archive for good.

        Returns which files they are here, by the attempts of the jobs that may leave.
        """
        archive = self._opened
        linking = None
        if isinstance(archive, FolderArchive):
            for name in {archived_log(each) for each in records}:
                archive.make_folder(name)
            linking = archive if archive.can_link(self._logs.directory) else None
        with ThreadPoolExecutor(COPIES_AT_ONCE) as threads:
            found = dict(
                each
                for each in threads.map(lambda one: self._kept_log(one, linking), records)
                if each
            )
        if linking is not None:
            for name in {
                os.path.dirname(archived_log(each)): archived_log(each) for each in records
            }.values():
                linking.sync(name)
        return found

    def _kept_log(
        self, record: JobRecord, linking: FolderArchive | None
    ) -> tuple[str, os.stat_result | None] | None:
        """Return a job's attempt and what its log is here; nothing if that can't be read."""
        try:
            return record.attempt, self._keep_log(record, linking)
        except UnreadableLog as error:
            _tell_kept(record, error)
            return None

    def _keep_log(self, record: JobRecord, linking: FolderArchive | None) -> os.stat_result | None:
        path = self._logs.path(record.submission_id)
        with _reading_log():
            for place in places(path):
                if is_link(place):
                    with contextlib.suppress(FileNotFoundError):  # it was moved just now
                        return os.lstat(place)
            fd = open_log(path)
        if fd is None:
            return None
        try:
            found = os.fstat(fd)
            # Looked at after it was opened: it might be the one of a new job with this id.
            if found.st_size and self._is_there(record):
                is_bounded = record.max_log_bytes is not None
                if linking is not None and not (is_bounded and has_hole(fd)):
                    linking.link(archived_log(record), fd)
                else:
                    self._opened.copy(archived_log(record), fd, is_bounded=is_bounded)
            return found
        finally:
            os.close(fd)

    def _drop_log(self, record: JobRecord, found: os.stat_result | None) -> list[int]:
        """Remove the log of a job that has left, and not that of a new one with its id.

        Returns the log itself, open: to free the space of a large one takes a while.
        """
        held: list[int] = []
        for place in places(self._logs.path(record.submission_id)):
            with contextlib.suppress(FileNotFoundError):
                if found is not None and os.path.samestat(os.lstat(place), found):
                    if not os.path.islink(place):
                        held.append(os.open(place, os.O_PATH | os.O_CLOEXEC))
                    os.unlink(place)
        return held

    @property
    def _opened(self) -> Archive:
        assert self._archive is not None
        return self._archive


@contextlib.contextmanager
def _reading_log() -> Iterator[None]:
    """Turn what goes wrong into `UnreadableLog`: another job's log may be fine."""
    try:
        yield
    except OSError as error:
        raise UnreadableLog(*error.args) from error


def _tell_kept(record: JobRecord, error: OSError) -> None:
    logger.warning(
        "Job %s is kept until the next start of the manager: its log can't be read: %s",
        record.submission_id,
        error,
    )


def _ended(record: JobRecord) -> Ended:
    return Ended(ended_boot_ms(record), record.submission_id, record.attempt)
