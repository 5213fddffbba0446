"""`KvStore` over a KV in memory."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from ray_jobs import mirror
from ray_jobs import store as store_module
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobStatus
from ray_jobs.records import MIRROR_FIELDS, JobRecord
from ray_jobs.store import KvStore, Superseded


class MemoryKv:
    def __init__(self) -> None:
        self.data: dict[tuple[bytes | None, str], bytes] = {}
        self.lost_answers = 0

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        await asyncio.sleep(0)
        answer_is_lost = self.lost_answers > 0
        self.lost_answers -= answer_is_lost
        is_new = self._put(namespace, key, value, overwrite)
        if answer_is_lost:
            raise ConnectionError("the answer was lost")
        return is_new

    def _put(self, namespace: bytes, key: str, value: bytes, overwrite: bool) -> bool:
        is_new = (namespace, key) not in self.data
        if is_new or overwrite:
            self.data[namespace, key] = value
        return is_new

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        return self.data.get((namespace, key))

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        return {key: self.data[namespace, key] for key in keys if (namespace, key) in self.data}

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        return [key for space, key in self.data if space == namespace and key.startswith(prefix)]

    async def delete(self, namespace: bytes, key: str) -> None:
        self.data.pop((namespace, key), None)

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        return (namespace, key) in self.data

    def mirror(self, submission_id: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            self.data[MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + submission_id]
        )
        return found


@pytest.fixture
def kv(monkeypatch: pytest.MonkeyPatch) -> MemoryKv:
    # Each write looks whether it may; retries come at once.
    monkeypatch.setattr(store_module, "FENCE_S", 0.0)
    monkeypatch.setattr(store_module, "SETTLING_S", 0.0)
    monkeypatch.setattr(mirror, "DELAY_S", 0.0)
    monkeypatch.setattr(mirror, "RETRY_S", 0.0)
    return MemoryKv()


async def claimed(kv: MemoryKv) -> KvStore:
    store = KvStore(kv, frozenset(MIRROR_FIELDS))
    await store.claim_epoch()
    return store


RECORD = JobRecord(
    submission_id="a",
    entrypoint="true",
    status=JobStatus.PENDING,
    start_time=7,
    metadata={"k": "v"},
    runtime_env={"env_vars": {"A": "1"}},
    entrypoint_num_cpus=2,
)


async def test_record_and_mirror(kv: MemoryKv) -> None:
    store = await claimed(kv)
    assert await store.create(RECORD) is True
    assert await store.load() == [RECORD]
    mirror = kv.mirror("a")
    assert set(mirror) == {*MIRROR_FIELDS, "runtime_env_json"}
    assert mirror["status"] == "PENDING"
    assert mirror["entrypoint_num_gpus"] == 0
    assert "waiting for resources" in str(mirror["message"])
    assert json.loads(str(mirror["runtime_env_json"])) == RECORD.runtime_env


async def test_mirror_has_only_what_the_installed_ray_knows(kv: MemoryKv) -> None:
    store = KvStore(kv, frozenset({"status", "entrypoint"}))
    await store.claim_epoch()
    await store.create(RECORD)
    assert set(kv.mirror("a")) == {"status", "entrypoint", "message", "runtime_env_json"}


async def test_id_is_claimed_once_among_many(kv: MemoryKv) -> None:
    store = await claimed(kv)
    records = [msgspec.structs.replace(RECORD, attempt=str(number)) for number in range(10)]
    claims = await asyncio.gather(*(store.create(record) for record in records))
    assert sorted(claims) == [False] * 9 + [True]


async def test_id_of_a_job_of_rays_own_server_is_taken(kv: MemoryKv) -> None:
    key = MIRROR_KEY_PREFIX + "a"
    kv.data[MIRROR_NAMESPACE, key] = b'{"status": "RUNNING", "entrypoint": "sleep 1"}'
    store = await claimed(kv)
    assert await store.create(RECORD) is False
    [foreign] = await store.load()
    assert (foreign.foreign, foreign.status) == (True, JobStatus.RUNNING)
    assert kv.mirror("a")["entrypoint"] == "sleep 1"


async def test_claim_whose_answer_was_lost_is_ours(kv: MemoryKv) -> None:
    store = await claimed(kv)
    kv.lost_answers = 1
    with pytest.raises(ConnectionError):
        await store.create(RECORD)
    assert await store.create(RECORD) is True
    other = msgspec.structs.replace(RECORD, attempt="of somebody else")
    assert await store.create(other) is False
    assert await store.load() == [RECORD]


async def test_deletion_leaves_nothing(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    await store.write([], ["a"])
    assert await store.load() == []


async def test_predecessor_is_fenced(kv: MemoryKv) -> None:
    old = await claimed(kv)
    await old.create(RECORD)
    await claimed(kv)
    with pytest.raises(Superseded):
        await old.write([msgspec.structs.replace(RECORD, status=JobStatus.FAILED)], [])
    with pytest.raises(Superseded):
        await old.create(msgspec.structs.replace(RECORD, submission_id="b"))


async def test_epochs_are_claimed_by_one_each(kv: MemoryKv) -> None:
    stores = [KvStore(kv, frozenset(MIRROR_FIELDS)) for _ in range(5)]
    epochs = await asyncio.gather(*(store.claim_epoch() for store in stores))
    assert sorted(epochs) == [1, 2, 3, 4, 5]


async def test_recovery_repairs_the_mirror(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    await kv.delete(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + "a")
    await store.mirror.repair([RECORD], lambda _: RECORD)
    await store.mirror.caught_up()
    assert kv.mirror("a")["status"] == "PENDING"


async def test_mirror_follows_and_shows_the_last_state(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    running = msgspec.structs.replace(RECORD, status=JobStatus.RUNNING)
    ended = msgspec.structs.replace(RECORD, status=JobStatus.SUCCEEDED)
    await store.write([running], [])
    await store.write([ended], [])
    assert await store.load() == [ended]
    await store.mirror.caught_up()
    assert kv.mirror("a")["status"] == "SUCCEEDED"


async def test_mirror_of_a_deleted_job_does_not_come_back(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    ended = msgspec.structs.replace(RECORD, status=JobStatus.SUCCEEDED)
    await store.write([ended], [])
    await store.write([], ["a"])
    await store.mirror.caught_up()
    assert await store.mirrored_ids() == set()


async def test_mirror_is_written_once_the_kv_is_back(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    kv.lost_answers = 1
    ended = msgspec.structs.replace(RECORD, status=JobStatus.FAILED)
    store.mirror.follow([ended])
    await store.mirror.caught_up()
    assert kv.mirror("a")["status"] == "FAILED"


async def test_ended_job_without_a_mirror_was_deleted(kv: MemoryKv) -> None:
    store = await claimed(kv)
    ended = msgspec.structs.replace(RECORD, submission_id="b", status=JobStatus.SUCCEEDED)
    await store.create(RECORD)
    await store.create(ended)
    for submission_id in ("a", "b"):  # as Ray's own server deletes
        await kv.delete(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + submission_id)
    assert await store.load() == [RECORD]
    assert await store.create(ended) is True  # its id may be used again


async def test_unreadable_record_hides_no_other(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    kv.data[b"ray_jobs", "job:broken"] = b"{"
    assert await store.load() == [RECORD]
