"""Jobs whose supervisors are killed: they are adopted as if nothing had been."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_jobs import JobInfo, JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.faults.gated import Gate, GatedJob
from tests.faults.judging import judged
from tests.faults.processes import runs, send
from tests.faults.supervisors import supervisors_of
from tests.faults.table import Row, report, seeded
from tests.waiting import wait_until

#: From the death of a job's supervisor until another one has it, so that a stop gets through.
ADOPTED_S = 3.0
END_TIMEOUT_S = 30.0
#: A job's end is its start, in whole ms, and as many as have passed since by another clock.
ROUNDING_MS = 1
#: From the moment when all jobs run. The pool begins to fill itself up in half a second.
PAUSE_S = (0.0, 0.5)


class Adoption:
    """Jobs that wait for a word, while what supervises them is killed. A context manager.

    It is entered at a random moment after they have begun to run.

    Args:
        fault: What it is called in the table.
        path: Where a pipe is made.
        inside: The command that runs another one on the jobs' host, if it isn't this one.
        options: Of each submission.
    """

    def __init__(
        self,
        fault: str,
        client: JobSubmissionClient,
        path: Path,
        count: int,
        *,
        inside: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self._fault = fault
        self._rng = seeded(fault)
        self._client = client
        self._gate = Gate(path)
        self._count = count
        self._inside = inside
        self._options = options
        self._jobs: list[GatedJob] = []
        self._stopped: list[GatedJob] = []
        self._killed_at = 0.0
        self._adopted_s: float | None = None

    def __enter__(self) -> Adoption:
        self._gate.__enter__()
        self._jobs = self._gate.start(self._client, self._count, **self._options)
        time.sleep(self._rng.uniform(*PAUSE_S))
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.__exit__()

    def supervisors(self) -> set[int]:
        """Return the pids of those that have these jobs."""
        return supervisors_of({job.keeper for job in self._jobs}, self._inside)

    def kill(self, pids: Collection[int]) -> None:
        assert pids
        self._killed_at = time.monotonic()
        for pid in pids:
            send(pid)

    def kill_own_supervisors(self) -> None:
        """Kill the supervisor of each job, where none has two."""
        pids = self.supervisors()
        assert len(pids) == self._count
        self.kill(pids)

    def check_stops(self, count: int) -> None:
        """Check that so many can be stopped, in time, and that the others don't notice."""
        self._stopped, others = self._jobs[:count], self._jobs[count:]
        began_ms = time.time() * 1000
        with ThreadPoolExecutor(count) as threads:
            assert all(threads.map(lambda job: self._client.stop_job(job.id), self._stopped))
        for job in self._stopped:
            info = self._client.wait_until_finish(job.id, timeout=END_TIMEOUT_S)
            assert info.status is JobStatus.STOPPED, info.message
            check_end_time(info, began_ms, time.time() * 1000)
        self._adopted_s = time.monotonic() - self._killed_at
        assert self._adopted_s < ADOPTED_S
        assert all(job.runs() for job in others)

    def check_ends(self) -> None:
        """Let the others end. Check codes, logs, and that each ended after that and before now.

        The last line of each is written after its supervisor was killed.
        """
        others = self._jobs[len(self._stopped) :]
        opened_ms = time.time() * 1000
        self._gate.open(len(others))
        wait_until(lambda: not any(runs(job.keeper) for job in others), "ends", END_TIMEOUT_S)
        now_ms = time.time() * 1000
        for job in others:
            info = self._client.wait_until_finish(job.id, timeout=END_TIMEOUT_S)
            check_end_time(info, opened_ms, now_ms)
            lines = self._client.get_job_logs(job.id).splitlines()
            assert lines[1:] == [f"pid {job.shell}", Gate.LAST_LINE]

    def report(self) -> None:
        """Put the outcome into the table of faults, and check it."""
        ends: dict[str, tuple[JobStatus, int | None]] = {
            job.id: (JobStatus.FAILED, job.code) for job in self._jobs
        }
        ends |= {job.id: (JobStatus.STOPPED, None) for job in self._stopped}
        report(Row(self._fault, 1, judged(self._client, ends), notice_s=self._adopted_s))


def check_end_time(info: JobInfo, earliest_ms: float, latest_ms: float) -> None:
    assert info.end_time is not None
    assert earliest_ms - ROUNDING_MS <= info.end_time <= latest_ms + ROUNDING_MS
