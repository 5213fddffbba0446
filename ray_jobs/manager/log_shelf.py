"""Moves the logs of jobs that ended long ago out of the log folder, which Ray looks through.

Ray's log monitor lists that folder some fifty times a second, whatever is in it: with 10,000
logs that takes 0.37 of a core, for as long as the cluster is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from ray_jobs.keeper.files import own_folder
from ray_jobs.log_files import LOG_PREFIX, SHELF, id_of_log
from ray_jobs.supervisor.logs import set_aside

logger = logging.getLogger(__name__)

#: So many logs stay where Ray's own tools look for them, the youngest.
KEPT_LOGS = 500
#: After so many new logs it is looked whether there are too many.
LOOK_AFTER_LOGS = 250
#: Renamed at once on the event loop: about a millisecond.
SLICE_LOGS = 50


class LogShelf:
    """The folder for old logs, beside the others.

    Args:
        directory: The session's log folder.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._is_live: Callable[[str], bool] | None = None
        self._begun = 0
        self._tidying: asyncio.Task[None] | None = None

    def open(self, is_live: Callable[[str], bool]) -> None:
        """Begin to move logs.

        Args:
            is_live: Tells of a submission id whether such a job may still write to its log.
        """
        self._is_live = is_live
        self._begun = LOOK_AFTER_LOGS
        self._look()

    def count(self) -> None:
        """Note that there is one log more."""
        self._begun += 1
        self._look()

    def _look(self) -> None:
        is_busy = self._tidying is not None and not self._tidying.done()
        if self._is_live is not None and self._begun >= LOOK_AFTER_LOGS and not is_busy:
            self._begun = 0
            self._tidying = asyncio.ensure_future(self._tidy(self._is_live))

    async def _tidy(self, is_live: Callable[[str], bool]) -> None:
        try:
            old = await asyncio.to_thread(self._old)
            for start in range(0, len(old), SLICE_LOGS):
                for name in old[start : start + SLICE_LOGS]:
                    if not is_live(id_of_log(name)):
                        self._move(name)
                await asyncio.sleep(0)
        except OSError:
            logger.exception("Can't move logs of jobs that ended long ago.")

    def _old(self) -> list[str]:
        """Return the names of all logs but the youngest, and make the folder for them."""
        ages = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.startswith(LOG_PREFIX):
                    with contextlib.suppress(FileNotFoundError):
                        ages.append((entry.stat().st_mtime_ns, entry.name))
        ages.sort()
        old = [name for _, name in ages[: max(0, len(ages) - KEPT_LOGS)]]
        if old:
            own_folder(os.path.join(self._directory, SHELF))
        return old

    def _move(self, name: str) -> None:
        target = os.path.join(self._directory, SHELF, name)
        set_aside(target)
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(self._directory, name), target)
