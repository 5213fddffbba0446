"""Jobs by id, and in the order of their start, over all and for each status. Pure."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

from ray_jobs.models import JobStatus

from .jobs import Key, SubmissionJob


class JobIndex:
    """Submissions by id and in the order of their start.

    A new job comes last in the order, nearly always, so that keeping it costs next to nothing.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, SubmissionJob] = {}
        self._order: list[Key] = []
        self._by_status: dict[JobStatus, list[Key]] = {status: [] for status in JobStatus}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, submission_id: str) -> SubmissionJob | None:
        return self._jobs.get(submission_id)

    def count(self, status: JobStatus) -> int:
        return len(self._by_status[status])

    def put(self, job: SubmissionJob) -> None:
        """Add a job, or replace it."""
        old = self._jobs.get(job.id)
        self._jobs[job.id] = job
        if old is not None and old.key == job.key:
            if old.status is not job.status:
                _remove(self._by_status[old.status], old.key)
                _add(self._by_status[job.status], job.key)
            return
        if old is not None:
            self._unlist(old)
        _add(self._order, job.key)
        _add(self._by_status[job.status], job.key)

    def remove(self, submission_id: str) -> None:
        """Remove a job. No-op if there is none of this id."""
        job = self._jobs.pop(submission_id, None)
        if job is not None:
            self._unlist(job)

    def keys(self) -> list[Key]:
        """Return the keys of all jobs, oldest first: a copy."""
        return self._order.copy()

    def newest(
        self, statuses: Collection[JobStatus] | None = None, before: Key | None = None
    ) -> Iterator[SubmissionJob]:
        """Yield jobs, newest first. The index may not change meanwhile.

        Args:
            statuses: Only these; None for all.
            before: Only jobs that come after this key in the order of the newest first.
        """
        if statuses is None:
            orders = [self._order]
        else:
            orders = [self._by_status[status] for status in statuses]
        for key in heapq.merge(*(_backwards(order, before) for order in orders), reverse=True):
            yield self._jobs[key[1]]

    def shed(self, count: int) -> bool:
        """Drop some jobs of an index that is not used any more. Returns whether some are left.

        To free a hundred thousand at once would hold up the event loop.
        """
        for _ in range(min(count, len(self._jobs))):
            self._jobs.popitem()
        return bool(self._jobs)

    def _unlist(self, job: SubmissionJob) -> None:
        _remove(self._order, job.key)
        _remove(self._by_status[job.status], job.key)


def _backwards(order: list[Key], before: Key | None) -> Iterator[Key]:
    end = len(order) if before is None else bisect_left(order, before)
    return (order[position] for position in range(end - 1, -1, -1))


def _add(order: list[Key], key: Key) -> None:
    if not order or order[-1] < key:
        order.append(key)
    else:
        insort(order, key)


def _remove(order: list[Key], key: Key) -> None:
    position = bisect_left(order, key)
    assert order[position] == key
    del order[position]
