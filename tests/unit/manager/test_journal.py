"""The journal: store first, publish after, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from ray_jobs.manager import journal as journal_module
from ray_jobs.manager import transitions
from ray_jobs.manager.journal import Journal
from ray_jobs.models import JobStatus
from ray_jobs.records import ChangeBatch, JobRecord, decode_record
from ray_jobs.store import Superseded

from .memory_store import MemoryStore


def pending(submission_id: str) -> JobRecord:
    return JobRecord(
        submission_id=submission_id, entrypoint="true", status=JobStatus.PENDING, start_time=1
    )


def seen(batch: ChangeBatch) -> list[tuple[str, str | None]]:
    return [
        (change.submission_id, decode_record(change.record).status if change.record else None)
        for change in batch.changes
    ]


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def journal(store: MemoryStore) -> AsyncIterator[Journal]:
    epoch = await store.claim_epoch()
    journal = Journal(store, epoch, on_superseded=lambda: None)
    yield journal
    await journal.close()


def run(record: JobRecord) -> JobRecord | None:
    return transitions.running(
        record, node_id="n", agent_address=None, on_head=True, log_base_bytes=0
    )


def succeed(record: JobRecord) -> JobRecord | None:
    return transitions.finished(record, status=JobStatus.SUCCEEDED, now_ms=9)


async def delete(journal: Journal, submission_id: str) -> None:
    record = journal.get(submission_id)
    assert record is not None
    await journal.delete(record)


async def ended(journal: Journal, submission_id: str) -> JobRecord:
    """Return a job that has been submitted and has ended."""
    await journal.create(pending(submission_id))
    record = await journal.update(submission_id, succeed)
    assert record is not None
    return record


async def test_created_job_is_stored_then_published(journal: Journal, store: MemoryStore) -> None:
    store.open.clear()
    creating = asyncio.ensure_future(journal.create(pending("a")))
    poll = await journal.changes(journal.epoch, 0, 0.02)
    assert poll.changes == []
    store.open.set()
    assert await creating is True
    assert seen(await journal.changes(journal.epoch, 0, 1)) == [("a", "PENDING")]
    assert "a" in store.records


async def test_second_job_of_one_id_is_refused(journal: Journal) -> None:
    results = await asyncio.gather(*(journal.create(pending("a")) for _ in range(5)))
    assert sorted(results) == [False] * 4 + [True]


async def test_id_taken_in_the_store_is_refused(journal: Journal, store: MemoryStore) -> None:
    store.records["a"] = pending("a")
    assert await journal.create(pending("a")) is False
    assert journal.get("a") is None


async def test_changes_come_in_order_and_once(journal: Journal) -> None:
    for name in "abc":
        await journal.create(pending(name))
    await journal.update("a", run)
    first = await journal.changes(journal.epoch, 0, 1)
    assert seen(first) == [("b", "PENDING"), ("c", "PENDING"), ("a", "RUNNING")]
    await journal.update("a", succeed)
    second = await journal.changes(journal.epoch, first.revision, 1)
    assert seen(second) == [("a", "SUCCEEDED")]


async def test_terminal_state_is_final(journal: Journal) -> None:
    await journal.create(pending("a"))
    await journal.update("a", succeed)
    assert await journal.update("a", run) is None
    late = await journal.update(
        "a", lambda each: transitions.finished(each, status=JobStatus.FAILED, now_ms=9)
    )
    assert late is None
    latest = journal.get("a")
    assert latest is not None
    assert latest.status is JobStatus.SUCCEEDED


async def test_states_queued_behind_a_slow_write_are_written_once(
    journal: Journal, store: MemoryStore
) -> None:
    await journal.create(pending("a"))
    await journal.create(pending("b"))
    store.open.clear()
    slow = asyncio.ensure_future(journal.update("b", run))
    await asyncio.sleep(0)
    first = asyncio.ensure_future(journal.update("a", run))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(journal.update("a", succeed))
    await asyncio.sleep(0)
    store.open.set()
    await asyncio.gather(slow, first, second)
    assert store.records["a"].status is JobStatus.SUCCEEDED
    assert sum(names.count("a") for names, _ in store.writes) == 1


async def test_failing_store_makes_late_not_wrong(
    journal: Journal, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FIRST_RETRY_S", 0.001)
    await journal.create(pending("a"))
    store.failures = 3
    await journal.update("a", succeed)
    assert store.records["a"].status is JobStatus.SUCCEEDED
    store.failures = 2
    assert await journal.create(pending("b")) is True


async def test_superseded_manager_writes_nothing_more(store: MemoryStore) -> None:
    told = asyncio.Event()
    old = Journal(store, await store.claim_epoch(), on_superseded=told.set)
    await old.create(pending("a"))
    store.claimed += 1  # a successor
    with pytest.raises(Superseded):
        await old.update("a", succeed)
    assert told.is_set()
    assert store.records["a"].status is JobStatus.PENDING
    with pytest.raises(Superseded):
        await old.create(pending("b"))
    await old.close()


async def test_deletion_is_a_change(journal: Journal) -> None:
    await journal.create(pending("a"))
    await journal.update("a", succeed)
    before = await journal.changes(journal.epoch, 0, 1)
    await delete(journal, "a")
    after = await journal.changes(journal.epoch, before.revision, 1)
    assert seen(after) == [("a", None)]
    assert await journal.create(pending("a")) is True


async def test_who_missed_deletions_gets_a_full_list(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_TOMBSTONES", 1)
    for name in "abc":
        await journal.create(pending(name))
        await journal.update(name, succeed)
    for name in "ab":
        await delete(journal, name)
    batch = await journal.changes(journal.epoch, 1, 1)
    assert batch.reset is True
    assert seen(batch) == [("c", "SUCCEEDED")]


@pytest.mark.parametrize(("bound", "value"), [("MAX_BATCH_CHANGES", 2), ("MAX_BATCH_BYTES", 1)])
async def test_another_epoch_gets_a_full_list_in_pieces(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(journal_module, bound, value)
    for name in "abcde":
        await journal.create(pending(name))
    batch = await journal.changes(journal.epoch - 1, 77, 1)
    assert (batch.reset, batch.more) == (True, True)
    names = [name for name, _ in seen(batch)]
    while batch.more:
        batch = await journal.changes(batch.epoch, batch.revision, 1)
        assert batch.reset is False
        names += [name for name, _ in seen(batch)]
    assert names == list("abcde")


async def test_waiting_poll_is_woken(journal: Journal) -> None:
    polls = [
        asyncio.ensure_future(journal.changes(journal.epoch, journal.revision, 10))
        for _ in range(3)
    ]
    await asyncio.sleep(0)
    await journal.create(pending("a"))
    for batch in await asyncio.gather(*polls):
        assert seen(batch) == [("a", "PENDING")]


async def test_repeated_submission_waits_for_the_first(
    journal: Journal, store: MemoryStore
) -> None:
    store.open.clear()
    creating = asyncio.ensure_future(journal.create(pending("a")))
    await asyncio.sleep(0)
    settled = asyncio.ensure_future(journal.settled("a"))
    await asyncio.sleep(0)
    assert not settled.done()
    store.open.set()
    await creating
    await asyncio.wait_for(settled, 1)
    assert journal.batch_of("a").changes[0].record is not None


async def test_seeded_records_keep_their_state(journal: Journal) -> None:
    old = msgspec.structs.replace(pending("a"), status=JobStatus.FAILED, message="m")
    journal.seed([old])
    assert seen(await journal.changes(journal.epoch, 0, 1)) == [("a", "FAILED")]


async def test_deletions_of_one_job_do_not_meet_the_next_one(
    journal: Journal, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FIRST_RETRY_S", 0.001)
    record = await ended(journal, "a")
    store.open.clear()
    first = asyncio.ensure_future(journal.delete(record))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is on its way
    second = asyncio.ensure_future(journal.delete(record))
    await asyncio.sleep(0)
    assert await journal.create(pending("a")) is False  # the id is taken until it is gone
    store.successes, store.failures = 1, 1  # what comes after the first is late
    store.open.set()
    await first
    next_job = msgspec.structs.replace(pending("a"), attempt="another")
    assert await journal.create(next_job) is True
    await second
    await journal.delete(record)  # one that comes late
    await ended(journal, "b")  # whatever was queued has been written
    assert store.records["a"] == journal.get("a") == next_job


async def test_job_that_is_being_deleted_does_not_change(
    journal: Journal, store: MemoryStore
) -> None:
    record = await ended(journal, "a")
    store.open.clear()
    deleting = asyncio.ensure_future(journal.delete(record))
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.waiting == 1
    assert journal.staying("a") is None
    revision = journal.revision
    other = msgspec.structs.replace(record, message="m")
    changing = asyncio.ensure_future(journal.update("a", lambda _: other))
    await asyncio.sleep(0)
    journal.observe(other)
    journal.observe_deletion("a")
    assert journal.get("a") == record
    assert journal.revision == revision
    store.open.set()
    await deleting
    assert await changing is None
    assert await journal.create(pending("b")) is True  # whatever was queued has been written
    assert list(store.records) == ["b"]
    assert journal.get("a") is None


async def test_who_waits_for_a_new_job_learns_that_it_was_refused(
    journal: Journal, store: MemoryStore
) -> None:
    store.records["a"] = pending("a")
    store.open.clear()
    creating = asyncio.ensure_future(journal.create(pending("a")))
    await asyncio.sleep(0)
    settled = asyncio.ensure_future(journal.settled("a"))
    await asyncio.sleep(0)
    creating.cancel()
    await asyncio.wait([creating])
    await asyncio.wait_for(settled, 1)
    assert journal.get("a") is None


async def test_state_of_a_new_job_is_not_written_before_it(
    journal: Journal, store: MemoryStore
) -> None:
    store.open.clear()
    creating = asyncio.ensure_future(journal.create(pending("a")))
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(
        journal.update("a", lambda each: transitions.stop_requested(each, 9))
    )
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.waiting == 1
    store.open.set()
    assert await creating is True
    await stopping
    assert store.records["a"].status is JobStatus.STOPPED


async def test_who_waits_for_a_state_hears_when_it_is_in_the_store(
    store: MemoryStore, journal: Journal
) -> None:
    await journal.create(pending("a"))
    await journal.written("a")
    store.open.clear()
    ending = asyncio.ensure_future(journal.update("a", succeed))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(journal.written("a"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    store.open.set()
    await waiting
    assert store.records["a"].status is JobStatus.SUCCEEDED
    await ending
    await journal.written("a")


async def test_who_waits_for_a_state_waits_for_the_one_that_comes_meanwhile(
    store: MemoryStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun = store.write, asyncio.Event()

    async def write_slowly(*args: Any) -> None:
        begun.set()
        await asyncio.sleep(0.01)
        await write(*args)

    async def is_recorded() -> bool:
        await journal.written("a")
        return journal.get("a") == store.records["a"]

    await journal.create(pending("a"))
    monkeypatch.setattr(store, "write", write_slowly)
    running = asyncio.ensure_future(journal.update("a", run))
    await begun.wait()
    waiting = asyncio.ensure_future(is_recorded())
    await asyncio.sleep(0)
    ending = asyncio.ensure_future(journal.update("a", succeed))
    assert await waiting
    await asyncio.gather(running, ending)
