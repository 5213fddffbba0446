"""Many jobs that wait for a word without costing anything."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ray_jobs import JobSubmissionClient
from tests.faults.processes import parent_of, runs
from tests.waiting import wait_until

START_TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class GatedJob:
    id: str
    shell: int  #: Pid.
    keeper: int  #: Pid.
    code: int  #: With which it ends.

    def runs(self) -> bool:
        return runs(self.shell)


class Gate:
    """A pipe from which each job reads a line before it ends. A context manager.

    Args:
        path: Where the pipe is made.
    """

    CODE = 5
    #: What a job writes before it ends.
    LAST_LINE = "let go"

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Gate:
        os.mkfifo(self._path)
        self._fd = os.open(self._path, os.O_RDWR)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def start(self, client: JobSubmissionClient, jobs: int, **options: Any) -> list[GatedJob]:
        """Have jobs started that wait here. Returns once they do.

        Args:
            options: Of each submission.
        """
        entrypoint = (
            f"echo pid $$; read word < {self._path}; echo {self.LAST_LINE}; exit {self.CODE}"
        )
        submitted = [client.submit_job(entrypoint=entrypoint, **options) for _ in range(jobs)]
        return [self._started(client, each) for each in submitted]

    def _started(self, client: JobSubmissionClient, job_id: str) -> GatedJob:
        def pids() -> list[int]:
            lines = client.get_job_logs(job_id).splitlines()
            return [int(line.split()[1]) for line in lines if line.startswith("pid ")]

        wait_until(lambda: bool(pids()), f"{job_id} runs", START_TIMEOUT_S)
        [shell] = pids()
        return GatedJob(job_id, shell, parent_of(shell), self.CODE)

    def open(self, jobs: int) -> None:
        """Let as many jobs end."""
        os.write(self._fd, b"\n" * jobs)
