"""Keeping the log of a job within its bound while the job writes. Standard library only."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from ray_jobs.growth import Growth
from ray_jobs.log_holes import trim
from ray_jobs.supervisor.logs import note_that_unbounded

logger = logging.getLogger(__name__)

#: How often a bounded log is looked at, at most: it may grow over the bound by what is written in
#: this time.
LOG_PAUSE_S = 0.02
A_DAY_S = 86_400.0


async def keep_bounded(
    path: str,
    max_bytes: int,
    growth: Growth,
    finished: asyncio.Event,
    copied: Callable[[], int | None],
) -> None:
    """Drop what is too much of a log until its job has ended, and then once more.

    Where that can't be done, a line in the log says so.

    Args:
        copied: Returns from which byte on nothing may be dropped yet; None if all may.
    """
    ended = asyncio.ensure_future(finished.wait())
    with growth.waiter(path) as waiter:
        ended.add_done_callback(lambda _: waiter.wake())
        try:
            while True:
                is_over = finished.is_set()
                await trim_once(path, max_bytes, copied())
                if is_over:
                    break
                await waiter.wait(A_DAY_S)
                # So that it isn't looked at for each line; but nobody waits for that at the end.
                await asyncio.wait([ended], timeout=LOG_PAUSE_S)
        except OSError as error:
            logger.warning("%s can't be bounded: %s", path, error)
            note_that_unbounded(path, error)
        finally:
            ended.cancel()


async def trim_once(path: str, max_bytes: int, limit: int | None) -> None:
    """Drop what is too much of a log, before the byte `limit`. Raises `OSError`."""
    try:
        is_small = os.path.getsize(path) <= max_bytes
    except FileNotFoundError:
        return
    if not is_small:
        await asyncio.to_thread(trim, path, max_bytes, limit)
