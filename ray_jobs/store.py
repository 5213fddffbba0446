"""Where job records are kept: the protocol, and the cluster's internal KV behind it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import msgspec

from ray_jobs.claims import EPOCH_PREFIX, KV_NAMESPACE
from ray_jobs.kv import KeyValueStore, put_if_absent, together
from ray_jobs.kv import Superseded as Superseded
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE, Mirror, mirror_key
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord, decode_record, encode_record, from_mirror

logger = logging.getLogger(__name__)

RECORD_PREFIX = "job:"
#: What is kept with an epoch that nobody says more of. Not empty: empty values can't be told from
#: none.
CLAIMED = b"claimed"
#: Of the epochs before the current one, this many are kept in the KV, against a slow predecessor.
KEPT_EPOCHS = 4
#: A manager looks so often, when it writes, whether it has been superseded; a new one begins to
#: read so long after its claim that no other will write any more.
FENCE_S = 0.1
SETTLING_S = 0.3
#: The calls of a write, one after the other: the look at the epochs, the record, its mirror.
CALLS_OF_A_WRITE = 3
#: Records that are read with one call: a few ms of the GCS, and under 512 MiB, as an answer must
#: be, though all are the largest that there can be. Meanwhile those before are decoded.
READ_PIECE = 200
READS_AT_ONCE = 2
#: Of records that are decoded in one step of the event loop: under 5 ms.
LOAD_SLICE_BYTES = 512 * 1024


@dataclasses.dataclass(frozen=True)
class StoredIds:
    """The jobs that were in the KV at one moment."""

    recorded: AbstractSet[str]  #: There is a record of ours.
    mirrored: AbstractSet[str]  #: Ray's own server knows of them: its own, and ours.

    def __contains__(self, submission_id: str) -> bool:
        return submission_id in self.recorded or submission_id in self.mirrored


class JobStore(Protocol):
    """The records of all jobs. Written by the manager alone (rule 1)."""

    async def claim_epoch(self) -> int:
        """Claim the next epoch. Every write of an earlier one raises `Superseded` from then on."""

    async def load(self) -> list[JobRecord]:
        """Return every job, those that Ray's own server wrote too (`foreign`)."""

    async def create(self, record: JobRecord) -> bool:
        """Write a new record. Returns False, and writes nothing, if its id is taken."""

    async def write(self, records: Sequence[JobRecord], deleted: Sequence[str]) -> None:
        """Write records of distinct jobs, and remove others. Raises `Superseded`."""

    async def check_epoch(self) -> None:
        """Raise `Superseded` if another manager has claimed a later epoch."""


class KvStore:
    """`JobStore` in the cluster's internal KV: jobs live and die with the cluster.

    A second copy of each record, in the form of Ray's own, is what Ray's tools read: the `mirror`.
    `mirror_fields` are those that the installed Ray knows. `claim` is kept with the epoch.
    """

    def __init__(
        self, kv: KeyValueStore, mirror_fields: frozenset[str], claim: bytes = CLAIMED
    ) -> None:
        self._kv = kv
        self._claim = claim
        self._epoch = 0
        self._checked_at = -FENCE_S
        self.mirror = Mirror(kv, mirror_fields, self.check_epoch)

    async def claim_epoch(self) -> int:
        while True:
            keys = await self._kv.keys(KV_NAMESPACE, EPOCH_PREFIX)
            taken = [int(key.removeprefix(EPOCH_PREFIX)) for key in keys]
            epoch = max(taken, default=0) + 1
            began = time.monotonic()
            claimed = await self._kv.put(
                KV_NAMESPACE, f"{EPOCH_PREFIX}{epoch}", self._claim, overwrite=False
            )
            took_s = time.monotonic() - began
            if claimed:
                break
        self._epoch = epoch
        for old in sorted(taken):  # in this order: see `check_epoch`
            if old <= epoch - KEPT_EPOCHS:
                await self._kv.delete(KV_NAMESPACE, f"{EPOCH_PREFIX}{old}")
        if taken:
            # A predecessor that looked just before may have its answers as late as we had ours.
            await asyncio.sleep(SETTLING_S + CALLS_OF_A_WRITE * took_s)
        return epoch

    async def load(self) -> list[JobRecord]:
        return await self.read(await self.ids())

    async def ids(self) -> StoredIds:
        """Return which jobs there are. Much sooner than `load`."""
        # In this order: a record is there before its mirror. A later manager's, written just now,
        # would pass for a job of Ray's own server.
        mirrored = await self.mirrored_ids()
        keys = await self._kv.keys(KV_NAMESPACE, RECORD_PREFIX)
        return StoredIds({key.removeprefix(RECORD_PREFIX) for key in keys}, mirrored)

    async def read(self, ids: StoredIds) -> list[JobRecord]:
        """Return the jobs that `ids` told, as `load` does."""
        recorded = list(ids.recorded)
        turn = asyncio.Semaphore(READS_AT_ONCE)
        pieces = await together(
            *(self._read_piece(piece, ids.mirrored, turn) for piece in pieces_of(recorded)),
            self.load_mirror(list(ids.mirrored - ids.recorded)),
        )
        return [record for piece in pieces for record in piece]

    async def _read_piece(
        self, submission_ids: Sequence[str], mirrored: AbstractSet[str], turn: asyncio.Semaphore
    ) -> list[JobRecord]:
        records = []
        unmirrored = []
        async with turn:
            keys = [RECORD_PREFIX + each for each in submission_ids]
            values = await self._kv.get_many(KV_NAMESPACE, keys)
            decoded_bytes = 0
            for key, data in values.items():
                decoded_bytes += len(data)
                if decoded_bytes > LOAD_SLICE_BYTES:
                    decoded_bytes = 0
                    await asyncio.sleep(0)
                submission_id = key.removeprefix(RECORD_PREFIX)
                try:
                    record = decode_record(data)
                except msgspec.DecodeError:
                    logger.exception("The record of job %s can't be read; skipped.", submission_id)
                    continue
                is_mirrored = submission_id in mirrored
                # Without a mirror an ended job was deleted, by Ray's own server or half by ours.
                if is_mirrored or not record.status.is_terminal():
                    records.append(record)
                elif self._epoch:  # the manager's load: its id may be used again
                    await self.check_epoch()
                    await self._kv.delete(KV_NAMESPACE, key)
                if not is_mirrored and not record.status.is_terminal():
                    unmirrored.append(record)
            if self._epoch:
                # Before they can end: who reads them next would take them for deleted ones.
                await self.mirror.show(unmirrored)
                records = await self._without_half_claimed(records, mirrored)
        return records

    async def _without_half_claimed(
        self, records: list[JobRecord], mirrored: AbstractSet[str]
    ) -> list[JobRecord]:
        """Drop what a manager that was killed had half claimed: Ray's own server has the id."""
        claimed = {
            each.submission_id: each
            for each in records
            if each.status is JobStatus.PENDING and each.submission_id in mirrored
        }
        theirs = {
            each.submission_id: each
            for each in await self.load_mirror(list(claimed))
            if each.start_time != claimed[each.submission_id].start_time
        }
        for submission_id in theirs:
            await self.check_epoch()
            await self._kv.delete(KV_NAMESPACE, RECORD_PREFIX + submission_id)
        return [theirs.get(each.submission_id, each) for each in records]

    async def load_mirror(self, submission_ids: Sequence[str]) -> list[JobRecord]:
        """Return jobs of Ray's own server as they are now."""
        records = []
        for piece in pieces_of(submission_ids):
            keys = [mirror_key(each) for each in piece]
            for key, value in (await self._kv.get_many(MIRROR_NAMESPACE, keys)).items():
                submission_id = key.removeprefix(MIRROR_KEY_PREFIX)
                try:
                    records.append(from_mirror(submission_id, value))
                except (msgspec.DecodeError, ValueError):
                    logger.exception("Ray's record of job %s can't be read.", submission_id)
        return records

    async def mirrored_ids(self) -> set[str]:
        """Return the jobs of which Ray's own server knows, its own and ours."""
        keys = await self._kv.keys(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX)
        return {key.removeprefix(MIRROR_KEY_PREFIX) for key in keys}

    async def create(self, record: JobRecord) -> bool:
        await self.check_epoch()
        key, mirrored_key = RECORD_PREFIX + record.submission_id, mirror_key(record.submission_id)
        # In this order: a mirror without its record would pass for a job of Ray's own server.
        is_created = await put_if_absent(self._kv, KV_NAMESPACE, key, encode_record(record))
        if is_created:
            await self.check_epoch()
            is_created = await put_if_absent(
                self._kv, MIRROR_NAMESPACE, mirrored_key, self.mirror.encoded(record)
            )
            if not is_created:  # Ray's own server has a job of this id
                await self.check_epoch()
                await self._kv.delete(KV_NAMESPACE, key)
        await self._check_in_time()
        return is_created

    async def write(self, records: Sequence[JobRecord], deleted: Sequence[str]) -> None:
        await self.check_epoch()
        # In this order: a mirror without its record would pass for a job of Ray's own server.
        await self.mirror.remove(deleted)
        await self.check_epoch()
        calls: list[Awaitable[object]] = [
            self._kv.put(KV_NAMESPACE, RECORD_PREFIX + each.submission_id, encode_record(each))
            for each in records
        ]
        calls.append(self.mirror.show([each for each in records if each.status.is_terminal()]))
        calls += [self._kv.delete(KV_NAMESPACE, RECORD_PREFIX + each) for each in deleted]
        await together(*calls)
        await self._check_in_time()
        self.mirror.follow(each for each in records if not each.status.is_terminal())

    async def _check_in_time(self) -> None:
        """Raise `Superseded` if a later manager may have read before the latest write was there.

        It reads SETTLING_S after its claim at the earliest: what is done so soon after a look that
        saw none, it sees.
        """
        if time.monotonic() - self._checked_at >= SETTLING_S:
            await self.check_epoch()

    async def check_epoch(self) -> None:
        """Raise `Superseded` if a later epoch has been claimed."""
        now = time.monotonic()
        if now - self._checked_at < FENCE_S:
            return
        own, following = (f"{EPOCH_PREFIX}{each}" for each in (self._epoch, self._epoch + 1))
        found = await self._kv.get_many(KV_NAMESPACE, [own, following])
        # Who comes much later removes the older ones, the oldest first: ours before the following.
        if own not in found or following in found:
            raise Superseded(f"Epoch {self._epoch} has been superseded.")
        self._checked_at = now


def pieces_of(submission_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield jobs as many at a time as are read with one call."""
    for start in range(0, len(submission_ids), READ_PIECE):
        yield submission_ids[start : start + READ_PIECE]
