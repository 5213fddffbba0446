"""The intake: what becomes of a submission, while a new manager still reads the records too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray_jobs.errors import DuplicateSubmissionId
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.records import JobRecord
from ray_jobs.store import StoredIds


class Intake:
    """Records submissions, and has their jobs run.

    A manager that has just started knows the ids of all jobs long before their records. Meanwhile
    it accepts submissions of other ids; their jobs run as soon as all records have been read.
    Those of the known ids wait for that: what they are told depends on the record.
    """

    def __init__(self, journal: Journal, logs: JobLogs, unread: StoredIds) -> None:
        self._journal = journal
        self._logs = logs
        self._unread = unread
        self._opened = asyncio.Event()
        self._run: Callable[[str], None] | None = None
        self._accepted: list[str] = []

    def open(self, run: Callable[[str], None]) -> None:
        """Have jobs run: those that were accepted already, and each new one.

        The journal must have the records of the ids that were unread.
        """
        self._unread = StoredIds(frozenset(), frozenset())
        self._run = run
        for submission_id in self._accepted:
            run(submission_id)
        self._accepted.clear()
        self._opened.set()

    async def submit(
        self, submission_id: str, request_key: str, new_record: Callable[[], JobRecord]
    ) -> None:
        """Record a job and have it run. No-op for a request that comes a second time.

        Args:
            new_record: Returns the record, and raises what the request is refused for.

        Raises `DuplicateSubmissionId`.
        """
        if submission_id in self._unread:
            await self._opened.wait()
        if self._journal.get(submission_id) is not None:
            await self._check_repeated(submission_id, request_key)
            return
        record = new_record()
        if not await self._journal.create(record):
            raise duplicate(submission_id)
        self._logs.begin(record)
        if self._run is not None:
            self._run(submission_id)
        else:
            self._accepted.append(submission_id)

    async def _check_repeated(self, submission_id: str, request_key: str) -> None:
        """Return once the job is recorded if the same request made it."""
        if self._is_of(submission_id, request_key):
            await self._journal.settled(submission_id)
        # Not any more, where the first request was refused.
        if not self._is_of(submission_id, request_key):
            raise duplicate(submission_id)

    def _is_of(self, submission_id: str, request_key: str) -> bool:
        record = self._journal.get(submission_id)
        return record is not None and record.request_key == request_key


def duplicate(submission_id: str) -> DuplicateSubmissionId:
    return DuplicateSubmissionId(
        f"Job with submission_id {submission_id} already exists. Please use a different"
        " submission_id."
    )
