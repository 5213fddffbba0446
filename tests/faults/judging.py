"""What has become of jobs that a test knows one by one."""

from __future__ import annotations

from collections.abc import Mapping

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.faults.processes import of_jobs
from tests.faults.table import Verdict
from tests.waiting import left_after

#: Until what a job leaves behind is gone.
ENDS_TIMEOUT_S = 5.0
RETRY_S = 0.05


def judged(
    client: JobSubmissionClient,
    ends: Mapping[str, tuple[JobStatus, int | None]],
    *,
    logs_are_whole: bool = True,
) -> Verdict:
    """Hold jobs, none of which runs any more, to their right ends.

    Args:
        ends: Each job's status and exit code. None: any.
        logs_are_whole: Else nobody can tell how often each was started.
    """
    lost, twice = [], []
    for job_id, (status, code) in ends.items():
        info = client.get_job_info(job_id)
        right = info.status is status and code in (None, info.driver_exit_code)
        if not right:
            lost.append(f"{job_id}: {info.status} {info.driver_exit_code}, {info.message!r}")
        if logs_are_whole and starts_in(client.get_job_logs(job_id)) > 1:
            twice.append(job_id)
    return Verdict(len(ends), lost, twice if logs_are_whole else None, orphans())


def starts_in(log: str) -> int:
    """Return how often a job was started that tells its shell's pid or its attempt at first."""
    return sum(line.startswith(("pid ", "attempt ")) for line in log.splitlines())


def orphans() -> list[str]:
    """Return the processes of jobs, which have all ended, that are still there in a while."""
    return left_after(of_jobs, ENDS_TIMEOUT_S, RETRY_S)
