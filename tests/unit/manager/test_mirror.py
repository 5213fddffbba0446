"""The mirror of the records, in a KV in memory."""

from __future__ import annotations

import asyncio

import msgspec

from ray_jobs.kv import Superseded
from ray_jobs.manager.journal import Journal
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord

from .memory_kv import RECORD, MemoryKv, claimed

RUNNING = msgspec.structs.replace(RECORD, status=JobStatus.RUNNING)
ENDED = msgspec.structs.replace(RECORD, status=JobStatus.SUCCEEDED)
OTHER = msgspec.structs.replace(RUNNING, submission_id="b")
KEY = MIRROR_KEY_PREFIX + "a"


def shows(kv: MemoryKv, record: JobRecord) -> bool:
    return kv.mirror(record.submission_id).get("status") == record.status


async def test_recovery_repairs_the_mirror(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    await kv.delete(MIRROR_NAMESPACE, KEY)
    await store.mirror.repair([RECORD], lambda _: RECORD)
    await kv.until(lambda: shows(kv, RECORD))


async def test_repair_is_tried_again(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    kv.failing_reads = 2
    await store.mirror.repair([RECORD], lambda _: RUNNING)
    await kv.until(lambda: shows(kv, RUNNING))


async def test_mirror_follows_and_shows_the_last_state(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    await store.write([RUNNING], [])
    await store.write([ENDED, OTHER], [])
    assert {each.submission_id: each for each in await store.load()}["a"] == ENDED
    await kv.until(lambda: shows(kv, OTHER))  # which is written after all that it was told before
    assert shows(kv, ENDED)


async def test_mirror_of_a_deleted_job_does_not_come_back(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    await store.write([ENDED], [])
    await store.write([], ["a"])
    await store.write([OTHER], [])
    await kv.until(lambda: shows(kv, OTHER))
    assert await store.mirrored_ids() == {"b"}


async def test_removal_takes_back_what_was_told_while_it_waited(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    kv.is_held = lambda call, key, value: key == MIRROR_KEY_PREFIX + "b"
    store.mirror.follow([OTHER])
    await kv.until(lambda: ("put", MIRROR_KEY_PREFIX + "b") in kv.calls)
    removing = asyncio.ensure_future(store.mirror.remove(["a"]))
    await asyncio.sleep(0)
    store.mirror.follow([RUNNING])
    kv.let_through()
    await removing
    store.mirror.follow([msgspec.structs.replace(OTHER, status=JobStatus.FAILED)])
    await kv.until(lambda: kv.mirror("b").get("status") == "FAILED")
    assert await store.mirrored_ids() == {"b"}


async def test_repair_does_not_bring_a_deleted_job_back(kv: MemoryKv) -> None:
    store = await claimed(kv)
    journal = Journal(store, 1, on_superseded=lambda: None)
    await journal.create(ENDED)
    kv.data[MIRROR_NAMESPACE, KEY] = b"{}"  # to be repaired
    kv.is_held = lambda call, key, value: call == "delete"
    deleting = asyncio.ensure_future(journal.delete(ENDED))
    await kv.until(lambda: ("delete", KEY) in kv.calls)
    await store.mirror.repair([ENDED], journal.at_rest)
    kv.let_through()
    await deleting
    await journal.create(OTHER)
    await journal.update("b", lambda each: msgspec.structs.replace(each, message="m"))
    await kv.until(lambda: kv.mirror("b").get("message") == "m")
    assert await store.mirrored_ids() == {"b"}
    await journal.close()


async def test_repair_shows_nothing_that_is_only_on_its_way(kv: MemoryKv) -> None:
    """A manager that is killed then leaves a mirror that says what its record doesn't."""
    store = await claimed(kv)
    journal = Journal(store, 1, on_superseded=lambda: None)
    await journal.create(RECORD)
    kv.is_held = lambda call, key, value: call == "put" and "job:" in key
    creating = asyncio.ensure_future(journal.create(OTHER))
    starting = asyncio.ensure_future(journal.update("a", lambda _: RUNNING))
    await kv.until(lambda: {key for call, key in kv.calls if call == "put"} >= {"job:a", "job:b"})
    await store.mirror.repair(journal.records(), journal.at_rest)
    last = msgspec.structs.replace(RUNNING, submission_id="last")
    store.mirror.follow([last])
    await kv.until(lambda: shows(kv, last))
    assert shows(kv, RECORD)
    assert await store.mirrored_ids() == {"a", "last"}
    kv.let_through()
    await asyncio.gather(creating, starting)
    await journal.close()


async def test_mirror_is_written_once_the_kv_is_back(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    kv.lost_answers = 1
    store.mirror.follow([RUNNING])
    await kv.until(lambda: kv.calls.count(("put", KEY)) == 3)
    assert shows(kv, RUNNING)


async def test_late_state_does_not_overtake_the_end(kv: MemoryKv) -> None:
    store = await claimed(kv)
    await store.create(RECORD)
    kv.is_held = lambda call, key, value: key == KEY and b"RUNNING" in value
    kv.lost_answers = 1  # of the other job's
    store.mirror.follow([OTHER, RUNNING])
    await kv.until(lambda: kv.lost_answers == 0)
    showing = asyncio.ensure_future(store.mirror.show([ENDED]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not showing.done()
    kv.let_through()
    await showing
    assert shows(kv, ENDED)


async def test_predecessor_writes_no_mirror(kv: MemoryKv) -> None:
    old = await claimed(kv)
    await old.create(RECORD)
    new = await claimed(kv)
    await new.write([ENDED], [])
    old.mirror.follow([RUNNING])
    writes = len(kv.calls)
    new.mirror.follow([OTHER])  # which is written after the other's turn
    await kv.until(lambda: shows(kv, OTHER))
    assert shows(kv, ENDED)
    assert [call for call in kv.calls[writes:] if call[0] == "put"] == [
        ("put", MIRROR_KEY_PREFIX + "b")
    ]


async def test_end_is_not_shown_by_a_predecessor(kv: MemoryKv) -> None:
    old = await claimed(kv)
    await old.create(RECORD)
    kv.is_held = lambda call, key, value: key == MIRROR_KEY_PREFIX + "b"
    old.mirror.follow([OTHER])
    await kv.until(lambda: ("put", MIRROR_KEY_PREFIX + "b") in kv.calls)
    showing = asyncio.ensure_future(old.mirror.show([ENDED]))  # waits for that
    await asyncio.sleep(0)
    await claimed(kv)
    kv.let_through()
    assert isinstance((await asyncio.gather(showing, return_exceptions=True))[0], Superseded)
    assert shows(kv, RECORD)
