"""Recovery: what a new manager takes over of an earlier one's, in steps that may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ray_jobs.kv import Superseded
from ray_jobs.records import JobRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0


class FindsSupervisors(Protocol):
    """What is needed here of `Supervisors`."""

    async def find(self, submission_id: str) -> Any | None: ...

    async def end(self, handle: Any) -> None: ...


async def until_done(step: Callable[[], Awaitable[T]]) -> T:
    """Do a step, however long it fails, and return its result. Raises `Superseded` alone."""
    delay_s = FIRST_RETRY_S
    while True:
        try:
            return await step()
        except Superseded:
            raise
        except Exception:
            logger.exception("A step failed; trying again in %.2f s.", delay_s)
        await asyncio.sleep(delay_s)
        delay_s = min(LAST_RETRY_S, delay_s * 2)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's garbage collector away from what is built here, for good.

    It would go through all records again and again, which takes longer than to decode them, and
    later for tenths of a second in which nothing is answered. Records have no cycles.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


async def end_leftovers(
    supervisors: FindsSupervisors, of_jobs: set[str], records: Sequence[JobRecord]
) -> None:
    """End supervisors that an earlier manager had no time to end after their jobs."""
    ended = {each.submission_id for each in records if each.status.is_terminal()}
    for submission_id in of_jobs & ended:
        handle = await supervisors.find(submission_id)
        if handle is not None:
            logger.info("Ending the supervisor that %s left behind.", submission_id)
            await supervisors.end(handle)
