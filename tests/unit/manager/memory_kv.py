"""The cluster's KV in memory: calls can be held, or fail, or do their work and lose the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobStatus
from ray_jobs.records import MIRROR_FIELDS, JobRecord
from ray_jobs.store import KvStore

RECORD = JobRecord(
    submission_id="a",
    entrypoint="true",
    status=JobStatus.PENDING,
    start_time=7,
    metadata={"k": "v"},
    runtime_env={"env_vars": {"A": "1"}},
    entrypoint_num_cpus=2,
)


class MemoryKv:
    def __init__(self) -> None:
        self.data: dict[tuple[bytes | None, str], bytes] = {}
        #: Puts that will do their work and raise.
        self.lost_answers = 0
        #: Reads of many values that will raise.
        self.failing_reads = 0
        #: Calls wait, before they do anything, as long as it holds for name, key and value.
        self.is_held: Callable[[str, str, bytes], bool] = lambda call, key, value: False
        #: The calls that have come, held ones too: name and key.
        self.calls: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that calls bring about."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), 5)

    def let_through(self) -> None:
        self.is_held = lambda call, key, value: False
        self._changed.set()

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        await self._come("put", key, value)
        is_new = (namespace, key) not in self.data
        if is_new or overwrite:
            self.data[namespace, key] = value
        self._changed.set()
        if self.lost_answers:
            self.lost_answers -= 1
            raise ConnectionError("the answer was lost")
        return is_new

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        return self.data.get((namespace, key))

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        await self._come("get_many", keys[0] if keys else "")
        if self.failing_reads:
            self.failing_reads -= 1
            raise ConnectionError("the KV is away")
        return {key: self.data[namespace, key] for key in keys if (namespace, key) in self.data}

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        return [key for space, key in self.data if space == namespace and key.startswith(prefix)]

    async def delete(self, namespace: bytes, key: str) -> None:
        await self._come("delete", key)
        self.data.pop((namespace, key), None)
        self._changed.set()

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        return (namespace, key) in self.data

    async def _come(self, call: str, key: str, value: bytes = b"") -> None:
        self.calls.append((call, key))
        self._changed.set()
        await asyncio.sleep(0)
        while self.is_held(call, key, value):
            self._changed.clear()
            await self._changed.wait()

    def mirror(self, submission_id: str) -> dict[str, object]:
        """Return what Ray's tools read of a job; empty if there is nothing."""
        key = (MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + submission_id)
        found: dict[str, object] = json.loads(self.data.get(key, b"{}"))
        return found


async def claimed(kv: MemoryKv) -> KvStore:
    """Return the store of a manager that has just claimed its epoch."""
    store = KvStore(kv, frozenset(MIRROR_FIELDS))
    await store.claim_epoch()
    return store
