"""Jobs of Ray's own server, over a KV in memory and with stand-ins for their supervisors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from ray_jobs.manager import foreign as foreign_module
from ray_jobs.manager.foreign import ForeignJobs
from ray_jobs.manager.journal import Journal
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobStatus
from ray_jobs.records import decode_record, from_mirror
from ray_jobs.store import KvStore

from .memory_kv import RECORD, MemoryKv, claimed

ENDED = msgspec.structs.replace(RECORD, status=JobStatus.SUCCEEDED, attempt="1")
KEY = MIRROR_KEY_PREFIX + "a"
RAYS = b'{"status": "RUNNING", "entrypoint": "sleep 1", "start_time": 3}'


class FakeNames:
    """The supervisors of jobs that there are. A look may be held."""

    def __init__(self) -> None:
        self.of_jobs: set[str] = set()
        self.looks = 0
        self._held: dict[int, asyncio.Event] = {}
        self._looked = asyncio.Event()

    def hold(self, look: int) -> asyncio.Event:
        """Have a look wait for the event."""
        return self._held.setdefault(look, asyncio.Event())

    async def until(self, look: int) -> None:
        while self.looks < look:
            self._looked.clear()
            await asyncio.wait_for(self._looked.wait(), 5)

    async def names(self) -> tuple[set[str], list[str]]:
        self.looks += 1
        self._looked.set()
        if self.looks in self._held:
            await self._held[self.looks].wait()
        return set(self.of_jobs), []


@pytest.fixture
async def store(kv: MemoryKv) -> KvStore:
    return await claimed(kv)


@pytest.fixture
async def journal(store: KvStore) -> AsyncIterator[Journal]:
    journal = Journal(store, 1, on_superseded=lambda: None)
    yield journal
    await journal.close()


@pytest.fixture
async def names() -> FakeNames:
    return FakeNames()


@pytest.fixture
async def jobs(
    journal: Journal,
    store: KvStore,
    names: FakeNames,
    deleted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> ForeignJobs:
    monkeypatch.setattr(foreign_module, "REFRESH_S", 0.0)
    return ForeignJobs(journal, store, names, lambda job: deleted.append(job.submission_id))


@pytest.fixture
async def deleted() -> list[str]:
    return []


async def until(journal: Journal, condition: Callable[[], bool]) -> None:
    """Wait until something holds that changes of jobs bring about."""
    while not condition():
        revision = journal.revision
        batch = await journal.changes(journal.epoch, revision, 5)
        assert batch.revision > revision, "nothing changed"


async def next_look(jobs: ForeignJobs, journal: Journal, kv: MemoryKv) -> None:
    """Wait until a whole look has passed."""
    for name in ("sign-1", "sign-2"):
        kv.data[MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + name] = b'{"status": "SUCCEEDED"}'
        await until(journal, lambda: journal.get(name) is not None)  # noqa: B023 - used at once


async def test_jobs_of_rays_server_come_and_go(
    jobs: ForeignJobs, journal: Journal, kv: MemoryKv, names: FakeNames
) -> None:
    names.of_jobs = {"a"}
    jobs.expect_more()
    kv.data[MIRROR_NAMESPACE, KEY] = RAYS
    await until(journal, lambda: journal.get("a") == from_mirror("a", RAYS))
    del kv.data[MIRROR_NAMESPACE, KEY]
    await until(journal, lambda: journal.get("a") is None)


async def test_jobs_of_rays_server_that_hold_no_text(
    jobs: ForeignJobs, journal: Journal, kv: MemoryKv, names: FakeNames
) -> None:
    """Ray's server takes halves of surrogate pairs. They would fail every list and write."""
    names.of_jobs = {"a"}
    jobs.expect_more()
    kv.data[MIRROR_NAMESPACE, KEY] = RAYS.replace(b'"RUNNING"', b'"RUNNING", "message": "\\ud800"')
    await until(journal, lambda: journal.get("a") is not None)
    batch = await journal.changes(0, 0, 0)
    assert [decode_record(each.record).message for each in batch.changes if each.record] == ["?"]


async def test_a_message_that_is_no_text_is_recorded(journal: Journal, kv: MemoryKv) -> None:
    await journal.create(msgspec.structs.replace(RECORD, submission_id="b"))
    await asyncio.wait_for(
        journal.update("b", lambda each: msgspec.structs.replace(each, message="no \udcff text")), 5
    )
    assert decode_record(kv.data[b"ray_jobs", "job:b"]).message == "no ? text"


async def test_job_that_rays_server_deleted_goes(
    jobs: ForeignJobs, journal: Journal, kv: MemoryKv, deleted: list[str]
) -> None:
    await journal.create(ENDED)
    jobs.expect_more()
    del kv.data[MIRROR_NAMESPACE, KEY]
    await until(journal, lambda: journal.get("a") is None)
    assert (b"ray_jobs", "job:a") not in kv.data
    await next_look(jobs, journal, kv)
    assert deleted == ["a"]


async def test_next_job_of_a_deleted_ones_id_stays(
    jobs: ForeignJobs, journal: Journal, kv: MemoryKv
) -> None:
    """It comes, and ends, between the look at the mirror and the deletion of what is missing."""
    await journal.create(ENDED)
    kv.data[MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + "new"] = b'{"status": "SUCCEEDED"}'
    del kv.data[MIRROR_NAMESPACE, KEY]
    held = ("get_many", MIRROR_KEY_PREFIX + "new")
    kv.is_held = lambda call, key, value: (call, key) == held
    jobs.expect_more()
    await kv.until(lambda: held in kv.calls)
    await journal.delete(ENDED)
    next_one = msgspec.structs.replace(ENDED, attempt="2")
    assert await journal.create(next_one) is True
    kv.let_through()
    await next_look(jobs, journal, kv)
    assert journal.get("a") == next_one
    assert kv.mirror("a")["status"] == "SUCCEEDED"


async def test_job_without_a_supervisor_is_lost(
    jobs: ForeignJobs, journal: Journal, kv: MemoryKv
) -> None:
    kv.data[MIRROR_NAMESPACE, KEY] = RAYS
    jobs.expect_more()
    await kv.until(lambda: kv.mirror("a")["status"] == "FAILED")


async def test_our_job_that_has_the_id_by_then_is_not_lost(
    jobs: ForeignJobs, journal: Journal, kv: MemoryKv, names: FakeNames
) -> None:
    kv.data[MIRROR_NAMESPACE, KEY] = RAYS
    first, second = names.hold(1), names.hold(2)
    jobs.expect_more()
    await names.until(look=1)
    kv.data[MIRROR_NAMESPACE, KEY] = RAYS.replace(b"RUNNING", b"SUCCEEDED")
    first.set()
    await names.until(look=2)  # which has seen the end, but not the supervisors
    ended = journal.get("a")
    assert ended is not None
    assert ended.status is JobStatus.SUCCEEDED
    await journal.delete(ended)
    assert await journal.create(RECORD) is True
    second.set()
    await next_look(jobs, journal, kv)
    assert journal.get("a") == RECORD


async def test_a_replaced_manager_takes_no_job_of_its_successor_for_rays(
    kv: MemoryKv, names: FakeNames
) -> None:
    gave_way = asyncio.Event()
    old = Journal(store := await claimed(kv), 1, on_superseded=gave_way.set)
    successor = await claimed(kv)
    assert await successor.create(ENDED)
    jobs = ForeignJobs(old, store, names, lambda _: None)
    jobs.expect_more()
    await asyncio.wait_for(gave_way.wait(), 5)
    assert old.get(ENDED.submission_id) is None
    await old.close()
