"""A job on another node that talks all the time, and its log at the head."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ray_jobs import JobSubmissionClient
from tests.faults.processes import of_jobs
from tests.waiting import wait_until

#: A number and the time, again and again. Families and sessions of its own end with it.
SCRIPT = """
import itertools, time
for number in itertools.count():
    print("said", number, time.time(), flush=True)
    time.sleep(0.005)
    {end}
"""
START_TIMEOUT_S = 60.0


class Talker:
    """A job that talks until it finds a file, or for ever.

    Args:
        logs: The folder of the logs at the head.
    """

    def __init__(
        self,
        client: JobSubmissionClient,
        logs: Path,
        resource: str,
        until: Path | None = None,
    ) -> None:
        end = f"if __import__('os').path.exists({str(until)!r}): break" if until else "pass"
        program = SCRIPT.format(end=end)
        self.job_id = client.submit_job(
            entrypoint="echo attempt $RAY_JOBS_ATTEMPT; setsid sleep 1000 & sleep 1000 &"
            ' python3 -S -c "$PROGRAM"',
            entrypoint_resources={resource: 1},
            runtime_env={"env_vars": {"PROGRAM": program}},
        )
        self.path = logs / f"job-driver-{self.job_id}.log"

    def wait_until_it_talks(self) -> None:
        wait_until(lambda: len(self.said()) > 1, f"{self.job_id} talks", START_TIMEOUT_S)

    def said(self) -> list[tuple[int, float]]:
        """Return each number that is in the log at the head, and when it was said."""
        text = self.path.read_text() if self.path.exists() else ""
        found = re.findall(r"^said (\d+) ([\d.]+)\n", text, re.MULTILINE)
        return [(int(number), float(when)) for number, when in found]

    def processes(self) -> list[str]:
        """Return the job's processes, wherever they are."""
        found = re.search(r"^attempt (\w+)$", self.path.read_text(), re.MULTILINE)
        assert found is not None
        return of_jobs(found[1].encode())

    def check_each_once(self) -> float:
        """Check that each line is there once, in order. Returns when the last one was said."""
        said = self.said()
        assert [number for number, _ in said] == list(range(len(said)))
        return said[-1][1]

    def wait_for_news(self, timeout_s: float) -> float:
        """Wait until something comes that is said from now on. Returns the seconds it took."""
        began, clock = time.monotonic(), time.time()
        wait_until(lambda: self.said()[-1][1] > clock, "its log goes on", timeout_s)
        return time.monotonic() - began
