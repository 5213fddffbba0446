"""The mirror: a copy of each record in the form of Ray's own, which Ray's tools read.

That a job runs is shown a moment later, so that one of a few milliseconds costs no write for it;
beginning and end are there before anybody hears of them. Who starts next repairs what a killed
manager left behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from ray_jobs.kv import KeyValueStore, Superseded, together
from ray_jobs.records import JobRecord, mirror_json

logger = logging.getLogger(__name__)

#: Where Ray keeps its own records of submitted jobs, literally.
MIRROR_NAMESPACE = b"job"
MIRROR_KEY_PREFIX = "_ray_internal_job_info_"
#: How long the mirror waits for what else changes.
DELAY_S = 0.05
RETRY_S = 1.0
#: A repair has time: it compares so many records in one step, under 5 ms, and then pauses.
REPAIR_SLICE = 200
REPAIR_PAUSE_S = 0.05


def mirror_key(submission_id: str) -> str:
    return MIRROR_KEY_PREFIX + submission_id


class Mirror:
    """Ray's own form of the records.

    Args:
        fields: Those that the installed Ray knows.
        check_epoch: Raises `Superseded` once another manager has taken over.
    """

    def __init__(
        self,
        kv: KeyValueStore,
        fields: frozenset[str],
        check_epoch: Callable[[], Awaitable[None]],
    ) -> None:
        self._kv = kv
        self._fields = fields
        self._check_epoch = check_epoch
        self._behind: dict[str, JobRecord] = {}
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def encoded(self, record: JobRecord) -> bytes:
        return mirror_json(record, self._fields)

    def follow(self, records: Iterable[JobRecord]) -> None:
        """Have the mirror show records soon."""
        self._behind.update((record.submission_id, record) for record in records)
        if self._behind and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._catch_up())

    async def show(self, records: Sequence[JobRecord]) -> None:
        """Have the mirror show how jobs ended, before anybody hears of it. Raises what fails."""
        if records:
            async with self._writing:  # an earlier state on its way must not come after
                await self._check_epoch()
                for record in records:
                    self._behind.pop(record.submission_id, None)
                await together(*(self._put(record) for record in records))

    async def remove(self, submission_ids: Sequence[str]) -> None:
        """Remove jobs from the mirror. Raises what fails."""
        if submission_ids:
            async with self._writing:  # what is on its way must not come after
                await self._check_epoch()
                for submission_id in submission_ids:
                    self._behind.pop(submission_id, None)
                await together(
                    *(
                        self._kv.delete(MIRROR_NAMESPACE, mirror_key(each))
                        for each in submission_ids
                    )
                )

    async def repair(
        self, records: Sequence[JobRecord], newest: Callable[[str], JobRecord | None]
    ) -> None:
        """Compare the mirror with all records, and have those that differ written.

        Args:
            newest: Returns a job as it is stored by then; None if it is gone, or something else is
                on its way: who writes that has the mirror follow. A mirror without its record would
                pass for a job of Ray's own server.
        """
        for start in range(0, len(records), REPAIR_SLICE):
            ids = [each.submission_id for each in records[start : start + REPAIR_SLICE]]
            found = await self._found(ids)
            now = [record for each in ids if (record := newest(each)) and not record.foreign]
            self.follow(
                record
                for record in now
                if found.get(mirror_key(record.submission_id)) != self.encoded(record)
            )
            await asyncio.sleep(REPAIR_PAUSE_S)

    async def _found(self, submission_ids: Sequence[str]) -> dict[str, bytes]:
        keys = [mirror_key(each) for each in submission_ids]
        while True:
            try:
                return await self._kv.get_many(MIRROR_NAMESPACE, keys)
            except Exception:
                logger.exception("The mirror of the records can't be read; trying again.")
            await asyncio.sleep(RETRY_S)

    async def _put(self, record: JobRecord) -> None:
        await self._kv.put(MIRROR_NAMESPACE, mirror_key(record.submission_id), self.encoded(record))

    async def _catch_up(self) -> None:
        while self._behind:
            await asyncio.sleep(DELAY_S)
            try:
                await self._write_behind()
            except Superseded:
                self._behind.clear()  # who has taken over repairs the mirror
            except Exception:
                logger.exception("The mirror of the records can't be written; trying again.")
                await asyncio.sleep(RETRY_S)

    async def _write_behind(self) -> None:
        async with self._writing:
            records, self._behind = self._behind, {}
            try:
                await self._check_epoch()
                await together(*(self._put(record) for record in records.values()))
            except Exception:
                self._behind = {**records, **self._behind}
                raise
