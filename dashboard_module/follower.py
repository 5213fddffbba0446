"""Keeping the replica current: from the manager's change stream, or from the KV without a manager.

A cluster that submits nothing pays nothing: reads never start a manager. While there is none they
read the KV, each look being good for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from ray_jobs.errors import ServerNotReady
from ray_jobs.records import ChangeBatch, decode_batch
from ray_jobs.timeouts import timeout

from .errors import persistently
from .job_index import JobIndex
from .jobs import SubmissionJob
from .ports import ManagerPort, StorePort
from .replica import DriverOf, Replica, Wake

#: How long a call for changes waits for one.
LONG_POLL_S = 30.0
#: While there is no manager, what was read from the KV is good for so long.
STORE_FRESH_S = 0.5
#: While there is no manager but somebody waits for a job, the KV is read so often.
STORE_POLL_S = 1.0
#: A read waits so long for the first full list of a manager before it turns to the KV.
FIRST_LIST_PATIENCE_S = 5.0
#: Jobs taken over in one step of the event loop: under 2 ms.
SLICE_JOBS = 200


class Follower:
    """Owns the replica, and one long-poll to the manager for all readers of the face."""

    def __init__(self, manager: ManagerPort, store: StorePort, driver_of: DriverOf) -> None:
        self.replica = Replica(driver_of)
        self._manager = manager
        self._store = store
        self._driver_of = driver_of
        self._is_attached = False
        self._attached_at = 0.0
        self._in_doubt = False
        #: Set while the replica holds a full list of the manager's.
        self._has_list = asyncio.Event()
        self._fresh_until = 0.0
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def before_read(self) -> None:
        """Return once the replica may be read.

        Raises what the store raises, only while there is no manager that has answered yet.
        """
        if self._has_list.is_set():
            return
        async with self._reading:
            if not self._has_list.is_set():
                await self._catch_up()

    async def attach(self, create: bool) -> bool:
        """Find the manager, or start it if there is none and `create`, and follow it.

        Returns whether there is one. Raises `ServerNotReady`.
        """
        if not self._is_attached and await self._manager.attach(create):
            self._is_attached = True
            self._attached_at = asyncio.get_running_loop().time()
            self._ensure_following()
        return self._is_attached

    def apply_early(self, batch: ChangeBatch) -> None:
        """Take over what an answer of the manager told, so that clients read their writes."""
        self.replica.apply_early(batch)

    @contextlib.contextmanager
    def watch(self, submission_id: str, wake: Wake) -> Iterator[None]:
        """Have `wake` called after each change of a job, whether there is a manager or not."""
        with self.replica.watch(submission_id, wake):
            self._ensure_following()
            yield

    async def close(self) -> None:
        """Stop following. The replica can still be read."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # --- reading the KV ---------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Get the manager's list, or what is in the KV where there is no manager to give it."""
        now = asyncio.get_running_loop().time()
        if not self._is_attached and now < self._fresh_until:
            return
        # Who can't reach the manager reads the KV too.
        with contextlib.suppress(ServerNotReady):
            await self.attach(create=False)
        if self._is_attached:
            patience_s = self._attached_at + FIRST_LIST_PATIENCE_S - now
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(max(0.0, patience_s)):
                    await self._has_list.wait()
        if not self._has_list.is_set() and now >= self._fresh_until:
            await self._load()

    async def _load(self) -> None:
        told_before = self.replica.told
        records = await self._store.load()
        index = JobIndex()
        for position, record in enumerate(records, 1):
            index.put(SubmissionJob(record, self._driver_of(record.submission_id)))
            if position % SLICE_JOBS == 0:
                await asyncio.sleep(0)
        if not self._has_list.is_set():  # the manager's may have come meanwhile
            self.replica.replace(index, told_before)
            await self._shed_retired()
        self._fresh_until = asyncio.get_running_loop().time() + STORE_FRESH_S

    # --- following the manager --------------------------------------------------------------

    def _ensure_following(self) -> None:
        if not self._is_closed and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(persistently("Following the jobs", self._step))

    async def _step(self) -> bool:
        if self._in_doubt:
            await self._ask_again()
        if self._is_attached:
            await self._follow_once()
            return True
        if not self.replica.is_watched:
            return False
        async with self._reading:
            await self._catch_up()
        if not self._is_attached:
            await asyncio.sleep(STORE_POLL_S)
        return True

    async def _follow_once(self) -> None:
        epoch, revision = self.replica.position
        try:
            batch = decode_batch(await self._manager.changes(epoch, revision, LONG_POLL_S))
        except ServerNotReady:
            self._in_doubt = True
            raise
        for piece in sliced(batch, SLICE_JOBS):
            if self.replica.position != (epoch, revision) and not piece.reset:
                return  # it was read from the KV meanwhile: the stream starts over
            self.replica.apply(piece)
            epoch, revision = self.replica.position
            await asyncio.sleep(0)
        if self.replica.holds_managers_list:
            self._has_list.set()
        await self._shed_retired()

    async def _ask_again(self) -> None:
        """After a failure: is there a manager still? Reads go on from the replica meanwhile."""
        self._is_attached = await self._manager.attach(create=False)
        self._in_doubt = False
        if not self._is_attached:
            self._has_list.clear()

    async def _shed_retired(self) -> None:
        while self.replica.retired:
            if not self.replica.retired[-1].shed(SLICE_JOBS * 5):
                self.replica.retired.pop()
            await asyncio.sleep(0)


def sliced(batch: ChangeBatch, size: int) -> Iterator[ChangeBatch]:
    """Cut a batch into pieces of at most `size` changes that come to the same."""
    if len(batch.changes) <= size:
        yield batch
        return
    for start in range(0, len(batch.changes), size):
        changes = batch.changes[start : start + size]
        is_last = start + size >= len(batch.changes)
        yield ChangeBatch(
            epoch=batch.epoch,
            revision=batch.revision if is_last else changes[-1].revision,
            changes=changes,
            reset=batch.reset and start == 0,
            more=batch.more or not is_last,
        )
