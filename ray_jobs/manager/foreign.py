"""Jobs of Ray's own job server: listed, read, stopped and deleted here, but led by that server.

It may have served before the plugin was enabled, or serve beside a gateway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from ray_jobs.keeper.clock import wall_ms
from ray_jobs.kv import Superseded
from ray_jobs.manager import transitions
from ray_jobs.manager.journal import Journal, is_same_job
from ray_jobs.models import JobErrorType
from ray_jobs.records import JobRecord
from ray_jobs.store import KvStore

logger = logging.getLogger(__name__)

#: How often Ray's records are looked at: Ray tells nobody of changes.
REFRESH_S = 2.0
#: New jobs of Ray's server are looked for as long as a gateway has asked for it within this time.
INTEREST_S = 90.0
#: And for so long after a face has started: Ray's server may have been in use in its place.
START_INTEREST_S = 5.0


class NamesSupervisors(Protocol):
    """What is needed here of `Supervisors`."""

    async def names(self) -> tuple[set[str], list[str]]: ...


class ForeignJobs:
    """Keeps the journal current with what Ray's own server records and deletes.

    Costs nothing where there is none of its jobs that lives, and no gateway.

    Args:
        on_deleted: Called with each that was deleted.
    """

    def __init__(
        self,
        journal: Journal,
        store: KvStore,
        supervisors: NamesSupervisors,
        on_deleted: Callable[[JobRecord], None],
    ) -> None:
        self._journal = journal
        self._store = store
        self._supervisors = supervisors
        self._on_deleted = on_deleted
        self._interest_until = 0.0
        #: Live ones that had no supervisor at the last look.
        self._orphans: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._ensure_following()

    def expect_more(self, for_s: float = INTEREST_S) -> None:
        """Look for new ones and for deletions too, for a while: Ray's server is in use."""
        self._interest_until = max(self._interest_until, time.monotonic() + for_s)
        self._ensure_following()

    @property
    def _expects_more(self) -> bool:
        return time.monotonic() < self._interest_until

    def _live(self) -> dict[str, JobRecord]:
        return {
            each.submission_id: each
            for each in self._journal.records()
            if each.foreign and not each.status.is_terminal()
        }

    def _ensure_following(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        while True:
            live = self._live()
            if not live and not self._expects_more:
                return
            try:
                if self._expects_more:
                    await self._look_for_others()
                if live:
                    await self._look_at(live)
            except Superseded:
                self._journal.give_way()
                return
            except Exception:
                logger.exception("Can't follow the jobs of Ray's own server; trying again.")
            await asyncio.sleep(REFRESH_S)

    async def _look_for_others(self) -> None:
        """Take over jobs that are new in the mirror, and drop those that were deleted there."""
        before = self._journal.records()
        mirrored = await self._store.mirrored_ids()
        missing = [each for each in before if each.submission_id not in mirrored]
        new = [each for each in mirrored if self._journal.get(each) is None]
        found = await self._store.load_mirror(new)
        if found:  # after that: a successor's jobs would pass for those of Ray's own server
            await self._store.check_epoch()
        for record in found:
            if self._journal.get(record.submission_id) is None:
                self._journal.observe(record)
        for record in missing:
            # Meanwhile the id may have become another job's.
            if not is_same_job(record, self._journal.get(record.submission_id)):
                continue
            # Of a job of ours that lives we know better than the mirror.
            if record.foreign:
                self._journal.observe_deletion(record.submission_id)
            elif record.status.is_terminal():
                await self._journal.delete(record)
            else:
                continue
            self._on_deleted(record)

    async def _look_at(self, live: dict[str, JobRecord]) -> None:
        """Take over what became of live ones. Nobody else would end one without a supervisor."""
        for record in await self._store.load_mirror(list(live)):
            known = self._journal.get(record.submission_id)
            if known is not None and known.foreign and known != record:
                self._journal.observe(record)
        of_jobs, _ = await self._supervisors.names()
        alone = live.keys() - of_jobs
        for submission_id in alone & self._orphans:
            await self._journal.update(submission_id, lost)
        self._orphans = alone - self._orphans


def lost(record: JobRecord) -> JobRecord | None:
    """A job of Ray's own server has no supervisor any more. Doesn't apply to one of ours, which
    may have got the id meanwhile.
    """
    if not record.foreign:
        return None
    return transitions.failed(
        record,
        now_ms=wall_ms(),
        message="Its supervisor, of Ray's own job server, is gone.",
        error_type=JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
    )
