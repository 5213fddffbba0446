"""Where job records are kept: the protocol, and the cluster's internal KV behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from ray_jobs.records import JobRecord, decode_record, encode_record, from_mirror, mirror_json

logger = logging.getLogger(__name__)

KV_NAMESPACE = b"ray_jobs"
RECORD_PREFIX = "job:"
#: Where Ray keeps its own records of submitted jobs, literally.
MIRROR_NAMESPACE = b"job"
MIRROR_KEY_PREFIX = "_ray_internal_job_info_"
EPOCH_PREFIX = "epoch:"
#: Of the epochs before the current one, this many are kept in the KV, against a slow predecessor.
KEPT_EPOCHS = 4


class Superseded(RuntimeError):
    """Another manager has claimed a later epoch: this one may write nothing more."""


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


class KeyValueStore(Protocol):
    """The cluster's internal KV, as `_ray.Kv` offers it."""

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Write. Returns whether the key is new."""

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        """Return a value, or None."""

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        """Return the values of those keys that exist."""

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix."""

    async def delete(self, namespace: bytes, key: str) -> None:
        """Remove a key. No-op if there is none."""

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        """Return whether there is a key."""


class KvStore:
    """`JobStore` in the cluster's internal KV: jobs live and die with the cluster.

    A second copy of each record, in the form of Ray's own, is what Ray's tools read.
    `mirror_fields` are those that the installed Ray knows.
    """

    def __init__(self, kv: KeyValueStore, mirror_fields: frozenset[str]) -> None:
        self._kv = kv
        self._epoch = 0
        self._mirror_fields = mirror_fields

    async def claim_epoch(self) -> int:
        while True:
            keys = await self._kv.keys(KV_NAMESPACE, EPOCH_PREFIX)
            taken = [int(key.removeprefix(EPOCH_PREFIX)) for key in keys]
            epoch = max(taken, default=0) + 1
            claimed = await self._kv.put(
                KV_NAMESPACE, f"{EPOCH_PREFIX}{epoch}", b"", overwrite=False
            )
            if claimed:
                break
        self._epoch = epoch
        for old in taken:
            if old <= epoch - KEPT_EPOCHS:
                await self._kv.delete(KV_NAMESPACE, f"{EPOCH_PREFIX}{old}")
        return epoch

    async def load(self) -> list[JobRecord]:
        own, mirrored = await asyncio.gather(
            self._load_all(KV_NAMESPACE, RECORD_PREFIX),
            self._load_all(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX),
        )
        records = []
        for submission_id, data in own.items():
            try:
                records.append(decode_record(data))
            except msgspec.DecodeError:
                logger.exception("The record of job %s can't be read; skipped.", submission_id)
        for submission_id in mirrored.keys() - own.keys():
            try:
                records.append(from_mirror(submission_id, mirrored[submission_id]))
            except (msgspec.DecodeError, ValueError):
                logger.exception("Ray's record of job %s can't be read; skipped.", submission_id)
        return records

    async def load_mirror(self, submission_ids: Sequence[str]) -> list[JobRecord]:
        """Return jobs of Ray's own server as they are now."""
        keys = [MIRROR_KEY_PREFIX + submission_id for submission_id in submission_ids]
        values = await self._kv.get_many(MIRROR_NAMESPACE, keys)
        return [
            from_mirror(key.removeprefix(MIRROR_KEY_PREFIX), value) for key, value in values.items()
        ]

    async def repair_mirror(self, records: Sequence[JobRecord]) -> None:
        """Make Ray's copy of our records what it should be."""
        mirrored = await self._load_all(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX)
        for record in records:
            wanted = mirror_json(record, self._mirror_fields)
            if not record.foreign and mirrored.get(record.submission_id) != wanted:
                await self._put_mirror(record, wanted)

    async def create(self, record: JobRecord) -> bool:
        await self._check_epoch()
        key = RECORD_PREFIX + record.submission_id
        if not await self._put_if_absent(KV_NAMESPACE, key, encode_record(record)):
            return False
        mirrored = await self._put_if_absent(
            MIRROR_NAMESPACE,
            MIRROR_KEY_PREFIX + record.submission_id,
            mirror_json(record, self._mirror_fields),
        )
        if not mirrored:  # Ray's own server has a job of this id
            await self._kv.delete(KV_NAMESPACE, key)
        return mirrored

    async def _put_if_absent(self, namespace: bytes, key: str, value: bytes) -> bool:
        """Claim a key. Returns whether it is ours; a claim whose answer was lost counts too."""
        if await self._kv.put(namespace, key, value, overwrite=False):
            return True
        return await self._kv.get(namespace, key) == value

    async def write(self, records: Sequence[JobRecord], deleted: Sequence[str]) -> None:
        await self._check_epoch()
        await asyncio.gather(
            *(self._put(record) for record in records),
            *(self._delete(submission_id) for submission_id in deleted),
        )

    async def _check_epoch(self) -> None:
        if await self._kv.exists(KV_NAMESPACE, f"{EPOCH_PREFIX}{self._epoch + 1}"):
            raise Superseded(f"Epoch {self._epoch} has been superseded.")

    async def _put(self, record: JobRecord) -> None:
        await asyncio.gather(
            self._kv.put(KV_NAMESPACE, RECORD_PREFIX + record.submission_id, encode_record(record)),
            self._put_mirror(record, mirror_json(record, self._mirror_fields)),
        )

    async def _put_mirror(self, record: JobRecord, data: bytes) -> None:
        await self._kv.put(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + record.submission_id, data)

    async def _delete(self, submission_id: str) -> None:
        # In this order: a mirror without its record would pass for a job of Ray's own server.
        await self._kv.delete(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + submission_id)
        await self._kv.delete(KV_NAMESPACE, RECORD_PREFIX + submission_id)

    async def _load_all(self, namespace: bytes, prefix: str) -> dict[str, bytes]:
        keys = await self._kv.keys(namespace, prefix)
        values = await self._kv.get_many(namespace, keys)
        return {key.removeprefix(prefix): value for key, value in values.items()}
