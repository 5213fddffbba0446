"""`KvStore` over a KV in memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from ray_jobs import store as store_module
from ray_jobs.claims import EPOCH_PREFIX, KV_NAMESPACE
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobStatus
from ray_jobs.records import MIRROR_FIELDS, JobRecord, encode_record, mirror_json
from ray_jobs.store import RECORD_PREFIX, KvStore, Superseded
from ray_jobs.supervisor.logs import TAIL_CHARS
from ray_jobs.validation import (
    MAX_ARGUMENT_BYTES,
    MAX_RESOURCES_CHARACTERS,
    MAX_SUBMISSION_ID_BYTES,
    parse_submit_request,
)

from .memory_kv import RECORD, MemoryKv, claimed

#: What Ray lets one answer of the GCS have.
MAX_GRPC_MESSAGE_BYTES = 512 * 1024 * 1024


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


async def test_id_that_was_half_claimed_is_that_of_rays_own_server(kv: MemoryKv) -> None:
    """The manager was killed between the two places."""
    key = MIRROR_KEY_PREFIX + "a"
    theirs = b'{"status": "RUNNING", "entrypoint": "sleep 1", "start_time": 5}'
    kv.data[MIRROR_NAMESPACE, key] = theirs
    kv.data[KV_NAMESPACE, RECORD_PREFIX + "a"] = encode_record(RECORD)
    other = msgspec.structs.replace(RECORD, submission_id="b")
    store = await claimed(kv)
    assert await store.create(other)
    records = {each.submission_id: each for each in await store.load()}
    assert records["b"] == other
    assert (records["a"].foreign, records["a"].status) == (True, JobStatus.RUNNING)
    assert kv.data[MIRROR_NAMESPACE, key] == theirs
    assert (KV_NAMESPACE, RECORD_PREFIX + "a") not in kv.data


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


async def test_many_records_are_read_in_pieces(
    kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "READ_PIECE", 3)
    monkeypatch.setattr(store_module, "LOAD_SLICE_BYTES", 500)
    store = await claimed(kv)
    names = [f"job-{number}" for number in range(10)]
    for name in names:
        await store.create(msgspec.structs.replace(RECORD, submission_id=name))
    theirs = [f"theirs-{number}" for number in range(5)]
    for name in theirs:
        kv.data[MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + name] = b'{"status": "SUCCEEDED"}'
    ids = await store.ids()
    assert all(each in ids for each in [*names, *theirs])
    assert "a" not in ids
    await store.create(RECORD)  # since then
    read_at_once = []
    get_many = kv.get_many

    async def counted(namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        read_at_once.append(len(keys))
        return await get_many(namespace, keys)

    monkeypatch.setattr(kv, "get_many", counted)
    assert sorted(each.submission_id for each in await store.read(ids)) == [*names, *theirs]
    assert max(read_at_once) == 3  # one answer holds 512 MiB at most


@pytest.mark.parametrize("character", ["\x01", "\U0001f642"])
def test_the_largest_records_can_be_read_together(character: str) -> None:
    """Characters take up to twelve bytes there. What the GCS can't answer, no manager can read."""
    body = {
        "entrypoint": character * (MAX_ARGUMENT_BYTES // len(character.encode())),
        "runtime_env": {"env_vars": {"A": '"' * (MAX_ARGUMENT_BYTES // 2 - 100)}},
        "entrypoint_resources": {character * MAX_RESOURCES_CHARACTERS: 1},
        "entrypoint_label_selector": {"a": "b" * (MAX_RESOURCES_CHARACTERS - 1)},
    }
    fields = msgspec.structs.asdict(parse_submit_request(json.dumps(body).encode()))
    known = {name: value for name, value in fields.items() if name in body}
    largest = JobRecord(
        submission_id="a" * MAX_SUBMISSION_ID_BYTES,
        status=JobStatus.FAILED,
        message=character * TAIL_CHARS,
        **known,
    )
    for encoded in (encode_record(largest), mirror_json(largest, frozenset(MIRROR_FIELDS))):
        assert len(encoded) * store_module.READ_PIECE < MAX_GRPC_MESSAGE_BYTES


async def test_a_job_that_is_recorded_meanwhile_is_none_of_rays(
    kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await claimed(kv)
    new = await claimed(kv)
    keys = kv.keys

    async def slow_keys(namespace: bytes, prefix: str) -> list[str]:
        found = await keys(namespace, prefix)
        await new.create(RECORD)
        return found

    monkeypatch.setattr(kv, "keys", slow_keys)
    ids = await old.ids()
    assert ids.mirrored <= ids.recorded


async def test_predecessor_that_still_reads_deletes_nothing(kv: MemoryKv) -> None:
    old = await claimed(kv)
    ended = msgspec.structs.replace(RECORD, status=JobStatus.SUCCEEDED)
    await old.create(ended)
    await kv.delete(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + "a")  # as Ray's own server deletes
    ids = await old.ids()
    new = await claimed(kv)
    with pytest.raises(Superseded):
        await old.read(ids)
    assert (b"ray_jobs", "job:a") in kv.data
    assert await new.load() == []


async def test_failed_write_leaves_nothing_on_its_way(kv: MemoryKv) -> None:
    store = await claimed(kv)
    other = msgspec.structs.replace(RECORD, submission_id="b")
    await store.create(RECORD)
    await store.create(other)
    kv.is_held = lambda call, key, value: call == "put" and key == "job:b"
    kv.lost_answers = 1
    ended = [msgspec.structs.replace(each, status=JobStatus.FAILED) for each in (RECORD, other)]
    writing = asyncio.ensure_future(store.write(ended, []))
    await kv.until(lambda: kv.lost_answers == 0)
    await asyncio.sleep(0)
    assert not writing.done()
    kv.let_through()
    with pytest.raises(ConnectionError):
        await writing


async def test_predecessor_of_long_ago_is_fenced_off_too(kv: MemoryKv) -> None:
    """The key of the epoch after its own has been removed by then."""
    old = await claimed(kv)
    for _ in range(store_module.KEPT_EPOCHS + 3):
        await claimed(kv)
    with pytest.raises(Superseded):
        await old.create(RECORD)


async def test_live_job_without_a_mirror_has_one_before_it_can_end(kv: MemoryKv) -> None:
    """Its manager died between the two. Without one at its end, the job would seem deleted."""
    old = await claimed(kv)
    await old.create(RECORD)
    await kv.delete(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + "a")
    assert await KvStore(kv, frozenset(MIRROR_FIELDS)).load() == [RECORD]  # a face's
    assert not kv.mirror("a")
    assert await (await claimed(kv)).load() == [RECORD]
    assert kv.mirror("a")["status"] == "PENDING"


@pytest.mark.parametrize("call", ["create", "write"])
async def test_what_a_successor_may_not_have_read_is_not_told(kv: MemoryKv, call: str) -> None:
    old = await claimed(kv)
    if call == "write":
        await old.create(RECORD)
    key = RECORD_PREFIX + "a"
    kv.is_held = lambda name, called, value: (name, called) == ("put", key)
    running = msgspec.structs.replace(RECORD, status=JobStatus.RUNNING)
    writing: asyncio.Future[Any] = asyncio.ensure_future(
        old.create(RECORD) if call == "create" else old.write([running], [])
    )
    await kv.until(lambda: kv.calls.count(("put", key)) == (2 if call == "write" else 1))
    await claimed(kv)
    kv.let_through()
    with pytest.raises(Superseded):
        await writing


async def test_predecessor_takes_no_step_after_one_that_took_long(kv: MemoryKv) -> None:
    old = await claimed(kv)
    ended = msgspec.structs.replace(RECORD, submission_id="b", status=JobStatus.FAILED)
    await old.create(RECORD)
    await old.create(ended)
    kv.is_held = lambda call, key, value: (call, key) == ("delete", MIRROR_KEY_PREFIX + "b")
    running = msgspec.structs.replace(RECORD, status=JobStatus.RUNNING)
    writing = asyncio.ensure_future(old.write([running], ["b"]))
    await kv.until(lambda: ("delete", MIRROR_KEY_PREFIX + "b") in kv.calls)
    await claimed(kv)
    kv.let_through()
    with pytest.raises(Superseded):
        await writing
    assert kv.data[KV_NAMESPACE, RECORD_PREFIX + "a"] == encode_record(RECORD)
    assert (KV_NAMESPACE, RECORD_PREFIX + "b") in kv.data


async def test_predecessor_mirrors_nothing_after_a_record_that_took_long(kv: MemoryKv) -> None:
    old = await claimed(kv)
    kv.is_held = lambda call, key, value: (call, key) == ("put", RECORD_PREFIX + "a")
    creating = asyncio.ensure_future(old.create(RECORD))
    await kv.until(lambda: ("put", RECORD_PREFIX + "a") in kv.calls)
    await claimed(kv)
    kv.let_through()
    with pytest.raises(Superseded):
        await creating
    assert not kv.mirror("a")


async def test_quick_writes_are_not_looked_at_again(
    kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FENCE_S", 60.0)
    monkeypatch.setattr(store_module, "SETTLING_S", 60.0)
    store = await claimed(kv)
    await store.create(RECORD)
    looks = [each for each in kv.calls if each[1].startswith(EPOCH_PREFIX)]
    await store.write([msgspec.structs.replace(RECORD, status=JobStatus.FAILED)], [])
    assert [each for each in kv.calls if each[1].startswith(EPOCH_PREFIX)] == looks


class LateKv(MemoryKv):
    """Does what it is asked at once. Its answers come late."""

    LATE_S = 0.05

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        is_new = await super().put(namespace, key, value, overwrite)
        await asyncio.sleep(self.LATE_S)
        return is_new

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        found = await super().get_many(namespace, keys)
        await asyncio.sleep(self.LATE_S)
        return found


@pytest.mark.usefixtures("kv")
async def test_predecessor_that_is_answered_late_writes_before_its_successor_reads() -> None:
    kv = LateKv()
    old = await claimed(kv)
    creating = asyncio.ensure_future(old.create(RECORD))
    await kv.until(lambda: ("get_many", "epoch:1") in kv.calls)  # it may, it hears later
    await claimed(kv)
    found = dict(kv.data)
    assert (KV_NAMESPACE, RECORD_PREFIX + "a") in found
    with pytest.raises(Superseded):  # the successor takes it over
        await creating
    assert kv.data == found
