"""Submissions, also those that come while a new manager still reads the records."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator, Callable

import pytest

from ray_jobs.errors import DuplicateSubmissionId, InvalidRequest
from ray_jobs.manager.intake import Intake
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from ray_jobs.store import StoredIds

from .memory_store import MemoryStore


def new(submission_id: str, request_key: str) -> Callable[[], JobRecord]:
    return lambda: JobRecord(
        submission_id=submission_id,
        entrypoint="true",
        status=JobStatus.PENDING,
        start_time=1,
        attempt=request_key,
        request_key=request_key,
    )


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def journal(store: MemoryStore) -> AsyncIterator[Journal]:
    journal = Journal(store, await store.claim_epoch(), on_superseded=lambda: None)
    yield journal
    await journal.close()


@pytest.fixture
def intake(journal: Journal, tmp_path: pathlib.Path) -> Intake:
    unread = StoredIds(recorded={"ours"}, mirrored={"ours", "of-ray"})
    return Intake(journal, JobLogs(str(tmp_path)), unread)


async def submit(intake: Intake, submission_id: str, request_key: str = "k") -> None:
    await intake.submit(submission_id, request_key, new(submission_id, request_key))


async def test_new_id_is_recorded_at_once_and_runs_when_all_is_read(
    intake: Intake, store: MemoryStore
) -> None:
    ran: list[str] = []
    await submit(intake, "a")
    assert "a" in store.records
    intake.open(ran.append)
    assert ran == ["a"]
    await submit(intake, "b")
    assert ran == ["a", "b"]


async def test_submission_that_is_on_its_way_when_all_is_read_runs_once(
    intake: Intake, store: MemoryStore
) -> None:
    ran: list[str] = []
    store.open.clear()
    submitting = asyncio.ensure_future(submit(intake, "a"))
    await asyncio.sleep(0)
    intake.open(ran.append)
    assert ran == []
    store.open.set()
    await submitting
    assert ran == ["a"]


@pytest.mark.parametrize("submission_id", ["ours", "of-ray"])
async def test_known_id_is_answered_when_its_record_is_read(
    intake: Intake, journal: Journal, submission_id: str
) -> None:
    ran: list[str] = []
    same = asyncio.ensure_future(submit(intake, submission_id, "first"))
    other = asyncio.ensure_future(submit(intake, submission_id, "second"))
    await asyncio.sleep(0)
    journal.seed([new(submission_id, "first")()])
    intake.open(ran.append)
    await same
    with pytest.raises(DuplicateSubmissionId):
        await other
    assert ran == []


async def test_known_id_whose_job_was_deleted_is_free(intake: Intake) -> None:
    ran: list[str] = []
    submitting = asyncio.ensure_future(submit(intake, "ours"))
    await asyncio.sleep(0)
    intake.open(ran.append)
    await submitting
    assert ran == ["ours"]


async def test_repeated_submission_is_one(intake: Intake) -> None:
    ran: list[str] = []
    intake.open(ran.append)
    await asyncio.gather(*(submit(intake, "a") for _ in range(3)))
    assert ran == ["a"]
    with pytest.raises(DuplicateSubmissionId):
        await submit(intake, "a", "another")


async def test_repeated_submission_is_refused_as_the_first_was(
    intake: Intake, store: MemoryStore
) -> None:
    intake.open(lambda _: None)
    store.records["a"] = new("a", "of somebody else")()
    store.open.clear()
    submissions = [asyncio.ensure_future(submit(intake, "a")) for _ in range(2)]
    await asyncio.sleep(0)
    store.open.set()
    answers = await asyncio.gather(*submissions, return_exceptions=True)
    assert [type(each) for each in answers] == [DuplicateSubmissionId] * 2


async def test_refused_request_leaves_nothing(intake: Intake, store: MemoryStore) -> None:
    def refuse() -> JobRecord:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        await intake.submit("a", "k", refuse)
    assert store.records == {}
    await submit(intake, "a")
