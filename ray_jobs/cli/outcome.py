"""The exit codes of the command line.

| code | meaning |
| --- | --- |
| 0 | done; for `submit`, `run` and `wait`: the job succeeded |
| 1 | an error, or the job was stopped, or failed without an exit code of its own |
| 2 | wrong usage |
| n | `submit`, `run`, `wait`: the job's entrypoint exited with n (128 + N if signal N ended it) |
| 124 | `wait --timeout`: the job had not ended in time |
| 130 | interrupted with Ctrl-C while the job goes on |
| 141 | whoever read our output went away (`| head`) |
| 143 | `run`: ended by SIGTERM |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_jobs.models import JobInfo

OK = 0
ERROR = 1
TIMEOUT = 124
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143


def exit_code_of(job: JobInfo) -> int:
    """Return the exit code that stands for the end of a job."""
    if job.status == "SUCCEEDED":
        return OK
    code = job.driver_exit_code
    # A stopped job's exit code is only that of our own signal: it says nothing of the job.
    if job.status == "STOPPED" or code is None:
        return ERROR
    if code < 0:
        return 128 - code
    # The kernel keeps eight bits; a failure must not come out as 0.
    return code & 0xFF or ERROR
