"""Which finished jobs leave."""

from __future__ import annotations

import random

from ray_jobs.manager import finished_jobs
from ray_jobs.manager.finished_jobs import Ended, FinishedJobs, RetentionSettings


def job(end_ms: int, submission_id: str = "") -> Ended:
    return Ended(end_ms, submission_id or f"job-{end_ms}", f"attempt-{end_ms}")


def test_settings() -> None:
    assert not RetentionSettings.of({}).is_on
    assert not RetentionSettings.of({"RAY_JOBS_ARCHIVE": "/archive"}).is_on
    settings = RetentionSettings.of({"RAY_JOBS_RETAIN_JOBS": "0", "RAY_JOBS_RETAIN_S": "1.5"})
    assert settings == RetentionSettings(most_jobs=0, age_s=1.5)
    assert not RetentionSettings.of({"RAY_JOBS_RETAIN_JOBS": "-5"}).is_on
    for text in ("nan", "inf", "1e306"):  # the last one can't be told in whole ms
        settings = RetentionSettings.of({"RAY_JOBS_RETAIN_S": text})
        assert not settings.is_on
        FinishedJobs(settings)


def test_the_oldest_leave_beyond_the_count() -> None:
    jobs = FinishedJobs(RetentionSettings(most_jobs=2))
    ends = list(range(10))
    random.Random(1).shuffle(ends)
    jobs.add_all(job(end) for end in ends[:4])
    for end in ends[4:]:
        jobs.add(job(end))
    assert [each.end_ms for each in jobs.take(0, most=5)] == [0, 1, 2, 3, 4]
    assert [each.end_ms for each in jobs.take(0, most=5)] == [5, 6, 7]
    assert jobs.due_in_ms(10**12) is None
    assert len(jobs) == 2


def test_jobs_leave_by_their_age() -> None:
    jobs = FinishedJobs(RetentionSettings(age_s=10))
    assert jobs.due_in_ms(0) is None
    jobs.add(job(5_000))
    jobs.add(job(2_000))
    assert jobs.due_in_ms(4_000) == 8_000
    assert jobs.take(11_999, 9) == []
    assert jobs.take(12_000, 9) == [job(2_000)]
    assert jobs.due_in_ms(12_000) == 3_000


def test_whichever_comes_first() -> None:
    jobs = FinishedJobs(RetentionSettings(most_jobs=1, age_s=10))
    jobs.add(job(1))
    assert jobs.due_in_ms(1) == 10_000
    jobs.add(job(2))
    assert jobs.due_in_ms(2) == 0
    assert jobs.take(2, 9) == [job(1)]
    assert jobs.take(10_002, 9) == [job(2)]


def test_deleted_jobs_dont_count() -> None:
    jobs = FinishedJobs(RetentionSettings(most_jobs=2))
    for end in range(3):
        jobs.add(job(end))
    jobs.discard("job-1", "attempt-1")
    jobs.discard("unknown", "")
    assert jobs.due_in_ms(0) is None
    jobs.add(job(3))
    assert jobs.take(0, 9) == [job(0)]


def test_an_id_that_is_used_again_is_another_job() -> None:
    jobs = FinishedJobs(RetentionSettings(most_jobs=0))
    jobs.add(job(1, "same"))
    jobs.discard("same", "attempt-1")
    jobs.add(job(2, "same"))
    jobs.add(job(2, "same"))  # told twice
    jobs.discard("same", "attempt-1")
    assert jobs.take(9, 9) == [job(2, "same")]
    assert jobs.take(9, 9) == []


def test_jobs_that_are_deleted_cost_no_memory() -> None:
    jobs = FinishedJobs(RetentionSettings(most_jobs=100))
    for end in range(10_000):
        jobs.add(job(end))
        if end >= 50:
            jobs.discard(f"job-{end}", f"attempt-{end}")
    assert len(jobs) == 50
    assert len(jobs._order) <= finished_jobs.LEAST_TO_TIDY + 2 * 50 + 1
