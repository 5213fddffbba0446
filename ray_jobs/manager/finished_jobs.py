"""Which finished jobs are kept, and which leave: by their count and by their age. Pure."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping

from ray_jobs.environ import number

#: The order is made anew when it holds more than so many, and mostly jobs that are gone.
LEAST_TO_TIDY = 1_000


@dataclasses.dataclass(frozen=True)
class RetentionSettings:
    """How long finished jobs are kept. None: for ever."""

    most_jobs: int | None = None
    age_s: float | None = None
    #: Where they are written before they leave: a folder, or a URL for fsspec. Empty: a folder
    #: beside the logs.
    archive: str = ""

    @property
    def is_on(self) -> bool:
        return self.most_jobs is not None or self.age_s is not None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> RetentionSettings:
        most_jobs = int(number(environ, "RAY_JOBS_RETAIN_JOBS", -1))
        age_s = number(environ, "RAY_JOBS_RETAIN_S", -1.0)
        return cls(
            most_jobs=most_jobs if most_jobs >= 0 else None,
            age_s=age_s if age_s >= 0 else None,
            archive=environ.get("RAY_JOBS_ARCHIVE", ""),
        )


@dataclasses.dataclass(frozen=True, order=True)
class Ended:
    """A job that has ended."""

    end_ms: int  #: By any clock that nobody sets. All times here are by the same.
    submission_id: str
    attempt: str


class FinishedJobs:
    """The finished jobs, in the order of their ends.

    Each call costs no more than the logarithm of their number.
    """

    def __init__(self, settings: RetentionSettings) -> None:
        self._most = settings.most_jobs
        self._age_ms = None if settings.age_s is None else int(settings.age_s * 1000)
        self._kept: dict[str, str] = {}  #: Attempts by submission id.
        self._order: list[Ended] = []  #: A heap, with jobs that are gone.

    def __len__(self) -> int:
        return len(self._kept)

    def add_all(self, jobs: Iterable[Ended]) -> None:
        self._order.extend(jobs)
        heapq.heapify(self._order)
        self._kept.update((each.submission_id, each.attempt) for each in self._order)

    def add(self, job: Ended) -> None:
        if self._kept.get(job.submission_id) != job.attempt:
            self._kept[job.submission_id] = job.attempt
            heapq.heappush(self._order, job)

    def discard(self, submission_id: str, attempt: str) -> None:
        """Note that a job was deleted. No-op if it isn't known."""
        if self._kept.get(submission_id) == attempt:
            del self._kept[submission_id]
        if len(self._order) > LEAST_TO_TIDY + 2 * len(self._kept):
            self._order = [each for each in self._order if self._is_kept(each)]
            heapq.heapify(self._order)

    def due_in_ms(self, now_ms: int) -> int | None:
        """Return how long it is until the next job leaves; None if none will by itself."""
        oldest = self._oldest()
        if oldest is None:
            return None
        if self._is_over():
            return 0
        return None if self._age_ms is None else max(0, oldest.end_ms + self._age_ms - now_ms)

    def take(self, now_ms: int, most: int) -> list[Ended]:
        """Remove up to `most` jobs that are to leave, the oldest first, and return them."""
        taken: list[Ended] = []
        while len(taken) < most and self.due_in_ms(now_ms) == 0:
            job = heapq.heappop(self._order)
            del self._kept[job.submission_id]
            taken.append(job)
        return taken

    def _is_over(self) -> bool:
        return self._most is not None and len(self._kept) > self._most

    def _oldest(self) -> Ended | None:
        while self._order and not self._is_kept(self._order[0]):
            heapq.heappop(self._order)
        return self._order[0] if self._order else None

    def _is_kept(self, job: Ended) -> bool:
        return self._kept.get(job.submission_id) == job.attempt
