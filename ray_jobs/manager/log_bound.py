"""A bound on the disk space of the logs of finished jobs together: the oldest are removed.

In the place of a removed log is a link to a text that says so, which every reader follows; it takes
no space itself, as even the shortest file does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from ray_jobs.environ import number
from ray_jobs.keeper.files import open_own, open_to_write
from ray_jobs.log_files import (
    LOG_PREFIX,
    NOTICE,
    SHELF,
    close_all,
    id_of_log,
    is_link,
    log_name,
    places,
)
from ray_jobs.manager.times import BOOTED_AT_MS, ended_boot_ms
from ray_jobs.records import JobRecord
from ray_jobs.supervisor.node import read_text

logger = logging.getLogger(__name__)

BLOCK_BYTES = 512  #: of `st_blocks`
#: Logs that can't be removed, for which there is no room, are tried again so often.
RETRY_S = 30.0
#: Removed at once on the event loop: about a millisecond.
SLICE_LOGS = 20


class LogBound:
    """The logs of finished jobs on this node, the oldest end first.

    Args:
        directory: The session's log folder.
        max_bytes: Of all of them together; None for no bound.
    """

    def __init__(self, directory: str, max_bytes: int | None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  #: By the names of files.
        self._total = 0
        self._is_live: Callable[[str], bool] | None = None
        self._has_notice = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, directory: str, environ: Mapping[str, str]) -> LogBound:
        max_bytes = int(number(environ, "RAY_JOBS_FINISHED_LOGS_MAX_BYTES", -1))
        return cls(directory, max_bytes if max_bytes >= 0 else None)

    @property
    def is_on(self) -> bool:
        return self._max_bytes is not None

    def open(self, records: Sequence[JobRecord], is_live: Callable[[str], bool]) -> None:
        """Begin: count the logs that are there. No-op where there is no bound.

        Args:
            records: All jobs. Logs of those that run, or aren't ours, don't count.
            is_live: Tells of a submission id whether such a job may still write to its log.
        """
        self._is_live = is_live
        if self._max_bytes is not None:
            self._task = asyncio.ensure_future(self._begin(records))

    def ended(self, submission_id: str) -> None:
        """Count the log of a job that has ended."""
        if self._max_bytes is None:
            return
        name = log_name(submission_id)
        self._drop(name)
        for place in places(os.path.join(self._directory, name)):
            if os.path.lexists(place):
                self._add(name, size_at(place))
                break
        self._look()

    def forget(self, submission_ids: Iterable[str]) -> dict[str, int]:
        """Don't count logs any more: they leave. Returns the sizes of those that were counted."""
        sizes = {each: self._sizes.get(log_name(each)) for each in submission_ids}
        for submission_id in sizes:
            self._drop(log_name(submission_id))
        return {each: size for each, size in sizes.items() if size is not None}

    def remember(self, sizes: Mapping[str, int]) -> None:
        """Count logs again that were forgotten, before all others: they don't leave after all."""
        self._count_again({log_name(each): size for each, size in sizes.items()})
        self._look()

    def _count_again(self, old: dict[str, int]) -> None:
        for name in old.keys() & self._sizes.keys():
            del old[name]  # a younger job's by now
        self._total += sum(old.values())
        self._sizes = OrderedDict({**old, **self._sizes})

    def renamed(self, name: str, new_name: str) -> None:
        """Note that the log of a deleted job was set aside: the first to be removed."""
        size = self._sizes.get(name)
        if size is not None:
            self._drop(name)
            self._add(new_name, size)
            self._sizes.move_to_end(new_name, last=False)

    def _add(self, name: str, size: int) -> None:
        self._sizes[name] = size
        self._total += size

    def _drop(self, name: str) -> None:
        self._total -= self._sizes.pop(name, 0)

    def _look(self) -> None:
        is_busy = self._task is not None and not self._task.done()
        if self._max_bytes is not None and self._total > self._max_bytes and not is_busy:
            self._task = asyncio.ensure_future(self._shrink(self._max_bytes))

    async def _begin(self, records: Sequence[JobRecord]) -> None:
        assert self._max_bytes is not None
        try:
            found = await asyncio.to_thread(self._scan, records)
        except OSError:
            logger.exception("Can't count the logs of finished jobs.")
            found = {}
        # What has ended meanwhile is younger, and counted already.
        for name in self._sizes:
            found.pop(name, None)
        self._total += sum(found.values())
        self._sizes = OrderedDict({**found, **self._sizes})
        await self._shrink(self._max_bytes)

    def _scan(self, records: Sequence[JobRecord]) -> dict[str, int]:
        """Return the sizes of all logs that are there, the oldest end first.

        Of a deleted job's log is only known when it was written last.
        """
        ends_ms = {
            log_name(each.submission_id): None
            if each.is_live or each.foreign
            else ended_boot_ms(each)
            for each in records
        }
        ages = []
        for folder in (self._directory, os.path.join(self._directory, SHELF)):
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(LOG_PREFIX) or entry.is_symlink():
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        written_ms = status.st_mtime_ns // 1_000_000 - BOOTED_AT_MS
                        end_ms = ends_ms.get(entry.name, written_ms)
                        if end_ms is not None:
                            ages.append((end_ms, entry.name, status.st_blocks * BLOCK_BYTES))
        return {name: size for _, name, size in sorted(ages)}

    def _write_notice(self, max_bytes: int) -> None:
        """Write the text for removed logs, unless it is there. A full disk has it later."""
        if self._has_notice:
            return
        path = os.path.join(self._directory, NOTICE)
        text = notice_of(max_bytes)
        try:
            if read_text(path) != text:
                with open(open_to_write(f"{path}.new", os.O_TRUNC), "w") as file:
                    file.write(text)
                os.rename(f"{path}.new", path)
            self._has_notice = True
        except OSError as error:
            logger.warning("Can't write what readers of removed logs are told: %s", error)

    async def _shrink(self, max_bytes: int) -> None:
        """Remove the oldest logs until the others are within the bound.

        Those that couldn't be removed are tried again, until they can or needn't.
        """
        while True:
            left = await self._remove_oldest(max_bytes)
            self._count_again(left)
            if not left or self._total <= max_bytes:
                return
            logger.warning("%d logs of finished jobs can't be removed yet.", len(left))
            await asyncio.sleep(RETRY_S)

    async def _remove_oldest(self, max_bytes: int) -> dict[str, int]:
        """Remove logs. Returns what is left of those that couldn't be, by the names of files."""
        left: dict[str, int] = {}
        await asyncio.to_thread(self._write_notice, max_bytes)
        while self._sizes and self._total > max_bytes:
            held: list[int] = []
            # The first that is cut off makes room for the text that links show.
            for _ in range(SLICE_LOGS if self._has_notice else 1):
                if not self._sizes or self._total <= max_bytes:
                    break
                name, size = self._sizes.popitem(last=False)
                self._total -= size
                replaced = self._replace(name) if self._has_notice else None
                if replaced is None:  # a full disk, mostly
                    left[name] = self._cut_off(name, max_bytes)
                else:
                    held += replaced
            await asyncio.to_thread(close_all, held)
            await asyncio.to_thread(self._write_notice, max_bytes)
        return left

    def _replace(self, name: str) -> list[int] | None:
        """Put the notice, which must be there, in the place of a log.

        Returns the log itself, open: to free the space of a large one takes a while. None if the
        log couldn't be replaced.
        """
        place = self._place_of(name)
        if place is None:
            return []
        try:
            fd = open_own(place, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):  # gone, or not a file of ours
            return []
        except OSError:
            return None
        link = f"{place}.link"
        # From the root on: the link may be moved to the other place later.
        notice = os.path.abspath(os.path.join(self._directory, NOTICE))
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)  # of a manager that was killed then
            os.symlink(notice, link)
            os.rename(link, place)
        except OSError:
            os.close(fd)
            return None
        return [fd]

    def _cut_off(self, name: str, max_bytes: int) -> int:
        """Have the notice in a log, in place of what it holds. Returns the bytes that it takes.

        On a full disk there may be no room for a link, but there is in what the log takes. One that
        the archive has too is removed.
        """
        place = self._place_of(name)
        if place is None:
            return 0
        try:
            with open(open_to_write(place), "wb") as file:
                if os.fstat(file.fileno()).st_nlink > 1:  # the archive has it too
                    os.unlink(place)
                    return 0
                file.write(notice_of(max_bytes).encode())
                file.truncate()  # afterwards: nobody finds it empty
        except OSError as error:
            logger.warning("Can't cut off the log %s: %s", name, error)
        return size_at(place)

    def _place_of(self, name: str) -> str | None:
        """Return where a log is that may be removed. None if there is none any more."""
        assert self._is_live is not None
        if self._is_live(id_of_log(name)):  # a new job's: counted at its end
            return None
        for place in places(os.path.join(self._directory, name)):
            if os.path.lexists(place):
                return None if is_link(place) else place
        return None


def size_at(path: str) -> int:
    """Return what a file takes of the disk, in bytes; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(path).st_blocks * BLOCK_BYTES
    return 0


def notice_of(max_bytes: int) -> str:
    """Return what readers of a removed log are told."""
    return (
        "[ray-jobs] The log of this job was removed: the logs of all finished jobs together may"
        f" take {max_bytes} bytes (RAY_JOBS_FINISHED_LOGS_MAX_BYTES).\n"
    )
