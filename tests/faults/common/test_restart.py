"""Submissions in the moments in which a new manager takes over."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ray_jobs import DuplicateSubmissionId, JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.faults.common.modes import each_its_own
from tests.faults.processes import titled

IDS = [f"job-{number}" for number in range(8)]


@each_its_own
def test_each_id_is_one_job(client: JobSubmissionClient) -> None:
    """Some ids have a job already, some are submitted twice, all while the manager restarts."""
    known = client.submit_job(entrypoint="echo known", submission_id="known")
    client.wait_until_finish(known, timeout=60)
    [manager] = titled("ray::JobManager")
    os.kill(manager, signal.SIGKILL)

    def submit(submission_id: str) -> bool:
        with suppress(DuplicateSubmissionId):
            return client.submit_job(entrypoint="echo new", submission_id=submission_id) != ""
        return False

    with ThreadPoolExecutor(20) as threads:
        accepted = list(threads.map(submit, [*IDS, *IDS, known]))
    assert sum(accepted) == len(IDS)
    assert accepted[-1] is False
    for submission_id in IDS:
        assert client.wait_until_finish(submission_id, timeout=60).status is JobStatus.SUCCEEDED
        assert client.get_job_logs(submission_id).count("new\n") == 1 + 1  # the header and the echo
    assert "known\n" in client.get_job_logs(known)
