"""The journal: every job record in memory, written to the store first and published after.

One writer loop takes what was queued, writes it in one go and publishes it in the order of its
revisions, so a replica that has seen revision n has seen all before it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from ray_jobs.records import Change, ChangeBatch, JobRecord, encode_record
from ray_jobs.store import JobStore, Superseded
from ray_jobs.timeouts import timeout

logger = logging.getLogger(__name__)

#: A change batch holds at most so many jobs, so that no reply blocks its reader for long.
MAX_BATCH_CHANGES = 2_000
#: And ends with the one that makes it so large: the record of a job may have some megabytes.
MAX_BATCH_BYTES = 16 * 1024 * 1024
#: Deletions older than the newest so many aren't remembered: who missed them gets a full list.
MAX_TOMBSTONES = 10_000
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0


class Journal:
    """All job records, and the stream of their changes.

    `on_superseded` is called once when another manager has taken over: nothing is written any more.
    """

    def __init__(self, store: JobStore, epoch: int, on_superseded: Callable[[], None]) -> None:
        self.epoch = epoch
        self.revision = 0
        self._store = store
        self._on_superseded = on_superseded
        #: As published: what is in the store. Ordered by revision, the latest change last.
        self._records: dict[str, JobRecord] = {}
        self._encoded: dict[str, bytes] = {}
        #: With what is still on its way to the store: transitions start from here.
        self._latest: dict[str, JobRecord] = {}
        self._tombstones: deque[tuple[int, str]] = deque()
        self._oldest_known = 0
        self._queue: dict[str, JobRecord | None] = {}
        #: Deletions on their way to the store, by submission id: done when they are written.
        self._deletions: dict[str, asyncio.Future[None]] = {}
        #: States on their way to the store, by submission id: done when they are written.
        self._on_way: dict[str, asyncio.Future[None]] = {}
        self._written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queued = asyncio.Event()
        self._changed = asyncio.Event()
        self._writer = asyncio.ensure_future(self._write_loop())

    def seed(self, records: list[JobRecord]) -> None:
        """Take over the records that a predecessor left in the store."""
        for record in sorted(records, key=lambda each: each.start_time or 0):
            self._latest[record.submission_id] = record
            self._number(record)
        self._wake()

    # --- reading ----------------------------------------------------------------------------

    def get(self, submission_id: str) -> JobRecord | None:
        """Return the newest state of a job, though it may be on its way to the store yet."""
        return self._latest.get(submission_id)

    def staying(self, submission_id: str) -> JobRecord | None:
        """Return what `get` does, None for a job that is being deleted."""
        return None if submission_id in self._deletions else self._latest.get(submission_id)

    def at_rest(self, submission_id: str) -> JobRecord | None:
        """Return a job as it is in the store. None while something else is on its way there."""
        return None if submission_id in self._on_way else self._records.get(submission_id)

    def records(self) -> list[JobRecord]:
        return list(self._latest.values())

    def batch_of(self, submission_id: str) -> ChangeBatch:
        """Return one job's published state as a batch that a replica may apply out of turn."""
        record = self._records.get(submission_id)
        encoded = self._json(record) if record else None
        revision = record.revision if record else self.revision
        return ChangeBatch(self.epoch, 0, [Change(revision, submission_id, encoded)])

    async def changes(self, epoch: int, since: int, timeout_s: float) -> ChangeBatch:
        """Return what changed after revision `since`, waiting up to `timeout_s` seconds for it."""
        if epoch == self.epoch and since >= self.revision:
            try:
                async with timeout(timeout_s):
                    await self._wait_for_change(since)
            except asyncio.TimeoutError:
                # One that was replaced and writes nothing would not learn it otherwise.
                await self.check_epoch()
                return ChangeBatch(self.epoch, self.revision, [])
        if epoch != self.epoch or (0 < since < self._oldest_known):
            return self._batch(0, reset=True)
        return self._batch(since)

    async def check_epoch(self) -> None:
        """Return once it is certain that no other manager has taken over. Raises `Superseded`."""
        await self._until_written(self._store.check_epoch)

    async def settled(self, submission_id: str) -> None:
        """Wait until a new job is in the store, or isn't a job any more.

        A repeated submission may come before that.
        """
        while submission_id in self._latest and submission_id not in self._records:
            await self._changed.wait()

    async def written(self, submission_id: str) -> None:
        """Wait until the newest state of a job is in the store: nobody hears of it before."""
        # Another one may be on its way by the time that this is told of the first.
        while (on_way := self._on_way.get(submission_id)) is not None:
            await asyncio.shield(on_way)

    async def _wait_for_change(self, since: int) -> None:
        while self.revision <= since:
            await self._changed.wait()

    def _batch(self, since: int, reset: bool = False) -> ChangeBatch:
        found: list[tuple[int, str, JobRecord | None]] = [
            (record.revision, record.submission_id, record) for record in self._after(since)
        ]
        if not reset:
            # In their order, the latest ones: there may be ten thousand.
            deleted = itertools.takewhile(lambda each: each[0] > since, reversed(self._tombstones))
            found += [(*each, None) for each in deleted]
        found.sort(key=lambda each: each[0])
        changes: list[Change] = []
        size = 0
        for revision, submission_id, record in found:
            if len(changes) == MAX_BATCH_CHANGES or size >= MAX_BATCH_BYTES:
                break
            encoded = None if record is None else self._json(record)
            size += len(encoded or b"")
            changes.append(Change(revision, submission_id, encoded))
        more = len(changes) < len(found)
        revision = changes[-1].revision if more else self.revision
        return ChangeBatch(self.epoch, revision, changes, reset=reset, more=more)

    def _after(self, since: int) -> list[JobRecord]:
        """Return the records after a revision, the first of them where there are many."""

        def is_later(record: JobRecord) -> bool:
            return record.revision > since

        if self.revision - since > MAX_BATCH_CHANGES:
            later = filter(is_later, self._records.values())
            return list(itertools.islice(later, MAX_BATCH_CHANGES + 1))
        return list(itertools.takewhile(is_later, reversed(self._records.values())))

    def _json(self, record: JobRecord) -> bytes:
        encoded = self._encoded.get(record.submission_id)
        if encoded is None:
            encoded = self._encoded[record.submission_id] = encode_record(record)
        return encoded

    # --- writing ----------------------------------------------------------------------------

    async def create(self, record: JobRecord) -> bool:
        """Write a new job. Returns False if its id is taken, by one that is being deleted too."""
        if record.submission_id in self._latest:
            return False
        self._latest[record.submission_id] = record
        try:
            created = await self._until_written(functools.partial(self._store.create, record))
        except BaseException:
            self._drop_new(record.submission_id)
            raise
        if not created:
            self._drop_new(record.submission_id)
            return False
        self._publish(record)
        return True

    async def update(
        self, submission_id: str, transition: Callable[[JobRecord], JobRecord | None]
    ) -> JobRecord | None:
        """Apply a transition and return once it is in the store.

        Returns the new record, or None where the job doesn't exist, is being deleted, or the
        transition doesn't apply.
        """
        await self.settled(submission_id)  # its later states must not be in the store before it
        record = self.staying(submission_id)
        changed = transition(record) if record else None
        if changed is None:
            return None
        self._latest[submission_id] = changed
        await asyncio.shield(self._enqueue(submission_id, changed))
        return changed

    async def delete(self, record: JobRecord) -> None:
        """Remove a job that has ended, and return once it is gone from the store.

        No-op if it is gone already, though another job has its id by now. While it is being
        deleted, other deletions wait for the same write: a second one might meet that other job.
        """
        submission_id = record.submission_id
        if not is_same_job(record, self._latest.get(submission_id)):
            return
        if submission_id not in self._deletions:
            self._deletions[submission_id] = self._enqueue(submission_id, None)
        await asyncio.shield(self._deletions[submission_id])

    def observe(self, record: JobRecord) -> None:
        """Publish a record that somebody else wrote: a job of Ray's own server.

        No-op while the job is being deleted.
        """
        if record.submission_id not in self._deletions:
            self._latest[record.submission_id] = record
            self._publish(record)

    def observe_deletion(self, submission_id: str) -> None:
        """Publish that somebody else deleted a job. No-op if there is none, or we do that too."""
        if submission_id in self._latest and submission_id not in self._deletions:
            self._forget(submission_id)

    def _drop_new(self, submission_id: str) -> None:
        self._latest.pop(submission_id, None)
        self._wake()  # a repeated submission may wait for it

    def _enqueue(self, submission_id: str, record: JobRecord | None) -> asyncio.Future[None]:
        """Have a state written, None for a deletion. The future is done once it is."""
        # Of several states of one job in a batch only the last is written: they would race.
        self._queue.pop(submission_id, None)
        self._queue[submission_id] = record
        self._queued.set()
        self._on_way[submission_id] = self._written
        return self._written

    async def _write_loop(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            batch, self._queue = self._queue, {}
            written = self._written
            self._written = asyncio.get_running_loop().create_future()
            records = [record for record in batch.values() if record is not None]
            deleted = [key for key, record in batch.items() if record is None]
            try:
                await self._until_written(functools.partial(self._store.write, records, deleted))
            except Superseded as error:
                written.set_exception(error)
                return
            for record in records:
                self._publish(record)
            for submission_id in deleted:
                self._forget(submission_id)
            for submission_id in batch:
                if self._on_way.get(submission_id) is written:
                    del self._on_way[submission_id]
            written.set_result(None)

    def give_way(self) -> None:
        """A supervisor has told that another manager has taken over."""
        self._on_superseded()

    async def _until_written(self, write: Callable[[], Awaitable[bool | None]]) -> bool:
        """Write, however long the store fails: late, never wrong."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                return bool(await write())
            except Superseded:
                self._on_superseded()
                raise
            except Exception:
                logger.exception("The store failed; trying again in %.2f s.", delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_RETRY_S, delay_s * 2)

    def _publish(self, record: JobRecord) -> None:
        self._number(record)
        self._wake()

    def _number(self, record: JobRecord) -> None:
        self.revision += 1
        record = msgspec.structs.replace(record, revision=self.revision)
        self._records.pop(record.submission_id, None)
        self._records[record.submission_id] = record
        self._encoded.pop(record.submission_id, None)  # made when it is asked for

    def _forget(self, submission_id: str) -> None:
        self.revision += 1
        # All at once: from here on the id is free.
        self._deletions.pop(submission_id, None)
        self._latest.pop(submission_id, None)
        self._records.pop(submission_id, None)
        self._encoded.pop(submission_id, None)
        self._tombstones.append((self.revision, submission_id))
        while len(self._tombstones) > MAX_TOMBSTONES:
            self._oldest_known = self._tombstones.popleft()[0]
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def close(self) -> None:
        self._writer.cancel()


def is_same_job(record: JobRecord, other: JobRecord | None) -> bool:
    """Return whether two records are states of one job that has ended, rather than of two jobs
    that had the id one after the other.
    """
    return other is not None and _identity(record) == _identity(other)


def _identity(record: JobRecord) -> tuple[bool, str, int | None]:
    return record.foreign, record.attempt, record.start_time
