"""The face's copy of every job, kept current by the manager's change stream. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ray_jobs.models import DriverInfo, JobStatus
from ray_jobs.records import Change, ChangeBatch, decode_record

from .job_index import JobIndex
from .jobs import SubmissionJob

#: By submission id: the epoch of the manager that told it, and the change.
Told = dict[str, tuple[int, Change]]
DriverOf = Callable[[str], "DriverInfo | None"]
Wake = Callable[[], None]


class _FullList:
    """A full list on its way: several batches, of which the last one makes it complete."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.revision = 0
        self.index = JobIndex()


class Replica:
    """Every job, as of a revision of a life (epoch) of the manager.

    `driver_of` tells the last driver of a submission.
    """

    def __init__(self, driver_of: DriverOf) -> None:
        self._driver_of = driver_of
        self._index = JobIndex()
        self._epoch = 0
        self._revision = 0
        self._coming: _FullList | None = None
        #: What answers of the manager told ahead of the stream, by submission id: the epoch and
        #: the change. A deletion must not be undone by an older state that is still on its way.
        self._early: Told = {}
        self._watchers: dict[str, set[Wake]] = {}
        #: Indexes that were replaced; who applies batches sheds them.
        self.retired: list[JobIndex] = []

    # --- reading ----------------------------------------------------------------------------

    @property
    def index(self) -> JobIndex:
        """All jobs, complete though perhaps not current."""
        return self._index

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and revision after which the manager is asked for changes."""
        if self._coming is not None:
            return self._coming.epoch, self._coming.revision
        return self._epoch, self._revision

    @property
    def holds_managers_list(self) -> bool:
        """Whether the content is a full list of a manager's, with no newer one on its way."""
        return self._epoch > 0 and self._coming is None

    @contextlib.contextmanager
    def watch(self, submission_id: str, wake: Wake) -> Iterator[None]:
        """Have `wake` called after each change of a job, its deletion included.

        It may be called without one, when a full list was taken over.
        """
        watchers = self._watchers.setdefault(submission_id, set())
        watchers.add(wake)
        try:
            yield
        finally:
            watchers.discard(wake)
            if not watchers and self._watchers.get(submission_id) is watchers:
                del self._watchers[submission_id]

    @property
    def is_watched(self) -> bool:
        return bool(self._watchers)

    # --- changing ---------------------------------------------------------------------------

    def apply(self, batch: ChangeBatch) -> None:
        """Take over the next piece of the change stream, from `position` on.

        A full list in several pieces replaces the content with the last of them. A piece of
        another life of the manager is dropped, and the stream starts over with a full list.
        """
        if batch.reset:
            self._drop_coming()
            self._coming = _FullList(batch.epoch)
        coming = self._coming
        if batch.epoch != self.position[0]:
            self.start_over()
        elif coming is not None:
            for change in batch.changes:
                self._put(coming.index, change)
            coming.revision = batch.revision
            if not batch.more:
                self._complete(coming)
        else:
            for change in batch.changes:
                if not self._is_overtaken(batch.epoch, change):
                    self._put(self._index, change)
                    self._wake(change.submission_id)
            self._revision = batch.revision
            self._forget_early()

    def apply_early(self, batch: ChangeBatch) -> None:
        """Take over what an answer of the manager told, ahead of the change stream."""
        if batch.epoch < max(self._epoch, self.position[0]):
            return  # of a manager that was replaced meanwhile: its successor tells
        for change in batch.changes:
            if batch.epoch == self._epoch and change.revision <= self._revision:
                continue
            if self._is_overtaken(batch.epoch, change):
                continue
            self._early[change.submission_id] = (batch.epoch, change)
            self._put(self._index, change)
            self._wake(change.submission_id)

    @property
    def told(self) -> Told:
        """What answers of the manager told ahead of the stream."""
        return dict(self._early)

    def replace(self, index: JobIndex, told_before: Told) -> None:
        """Take over jobs that were read from the KV, as there is no manager, or its list is long.

        A manager's list that is on its way goes on: it would never be complete otherwise.

        Args:
            told_before: What was `told` when the reading began. What came since isn't undone.
        """
        if self._coming is None or not self._coming.epoch:
            self.start_over()
        self._epoch = self._revision = 0
        for submission_id, told in self._early.items():
            if told_before.get(submission_id) is not told:
                self._put_unless_later(index, told[1])
        self._swap(index)

    def start_over(self) -> None:
        """Ask for a full list next. The content stays as it is until then."""
        self._drop_coming()
        self._coming = _FullList(0)

    def job_of(self, change: Change) -> SubmissionJob | None:
        if change.record is None:
            return None
        return SubmissionJob(decode_record(change.record), self._driver_of(change.submission_id))

    def refresh_driver(self, submission_id: str) -> None:
        """Take over another last driver of a submission. No-op if there is no such job."""
        indexes = [self._index] if self._coming is None else [self._index, self._coming.index]
        for index in indexes:
            job = index.get(submission_id)
            if job is not None:
                index.put(SubmissionJob(job.record, self._driver_of(submission_id)))

    def wake_all(self) -> None:
        """Wake every watcher."""
        for submission_id in list(self._watchers):
            self._wake(submission_id)

    # --- inside -----------------------------------------------------------------------------

    def _put(self, index: JobIndex, change: Change) -> None:
        job = self.job_of(change)
        if job is None:
            index.remove(change.submission_id)
        else:
            index.put(job)

    def _put_unless_later(self, index: JobIndex, change: Change) -> None:
        """Put a job, unless the index has it in a later state."""
        job, known = self.job_of(change), index.get(change.submission_id)
        is_same = job and known and job.record.attempt == known.record.attempt
        if not (is_same and known and job and _stage(known) > _stage(job)):
            self._put(index, change)

    def _is_overtaken(self, epoch: int, change: Change) -> bool:
        known = self._early.get(change.submission_id)
        return known is not None and known[0] == epoch and known[1].revision > change.revision

    def _complete(self, coming: _FullList) -> None:
        self._coming = None
        self._epoch, self._revision = coming.epoch, coming.revision
        self._forget_early()
        for _, change in self._early.values():
            self._put(coming.index, change)
        self._swap(coming.index)

    def _forget_early(self) -> None:
        if self._early:
            self._early = {
                submission_id: (epoch, change)
                for submission_id, (epoch, change) in self._early.items()
                if (epoch, change.revision) > (self._epoch, self._revision)
            }

    def _swap(self, index: JobIndex) -> None:
        self.retired.append(self._index)
        self._index = index
        self.wake_all()

    def _drop_coming(self) -> None:
        if self._coming is not None:
            self.retired.append(self._coming.index)
            self._coming = None

    def _wake(self, submission_id: str) -> None:
        for wake in tuple(self._watchers.get(submission_id, ())):
            wake()


def _stage(job: SubmissionJob) -> int:
    return 2 if job.record.status.is_terminal() else int(job.record.status is JobStatus.RUNNING)
