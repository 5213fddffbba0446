"""The moments in which a new manager takes over."""

from __future__ import annotations

import os
import signal
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from ray_jobs import DuplicateSubmissionId, JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster
from tests.faults.common.modes import Mode, each_its_own
from tests.faults.processes import kill_titled, runs, start_waiting_job, titled
from tests.faults.stored import check_kv_is_as_listed
from tests.faults.successor import Successor
from tests.faults.supervisors import MANAGER, wait_for_idle_supervisors
from tests.faults.table import seeded, times

#: Of a manager that was killed, until it takes a submission. By the clock of a machine that has
#: nothing else to do: what a busy one makes of it is told by the table.
BACK_WITHIN_S = 3.0
#: Reads don't wait for the manager.
READ_WITHIN_S = 1.0
#: Between two reads: one process of two doesn't get its core for itself.
READ_PAUSE_S = 0.02
IDS = [f"job-{number}" for number in range(8)]


pytestmark = each_its_own


def test_back_within_three_seconds(client: JobSubmissionClient, mode: Mode, tmp_path: Path) -> None:
    rng = seeded("the manager killed on a quiet machine")
    running, _ = start_waiting_job(client, tmp_path)
    backs_s, reads_s = [], []
    for _ in range(times(3)):
        wait_for_idle_supervisors(mode.idle)
        time.sleep(rng.uniform(0, 1))
        assert kill_titled(MANAGER)
        killed = time.monotonic()
        longest_s = 0.0
        with ThreadPoolExecutor(1) as threads:
            submitting = threads.submit(client.submit_job, entrypoint="true")
            while not submitting.done():
                began = time.monotonic()
                assert client.get_job_status(running) is JobStatus.RUNNING
                longest_s = max(longest_s, time.monotonic() - began)
                time.sleep(READ_PAUSE_S)
        backs_s.append(time.monotonic() - killed)
        reads_s.append(longest_s)
        assert client.wait_until_finish(submitting.result(), 60).status is JobStatus.SUCCEEDED
    (tmp_path / "go").touch()
    assert client.wait_until_finish(running, timeout=60).driver_exit_code == 5
    print("back within", backs_s, "the longest reads", reads_s)
    # A busy moment of the machine isn't the manager's.
    assert statistics.median(backs_s) < BACK_WITHIN_S
    assert statistics.median(reads_s) < READ_WITHIN_S


def test_each_id_is_one_job(client: JobSubmissionClient) -> None:
    """Some ids have a job already, some are submitted twice, all while the manager restarts."""
    known = client.submit_job(entrypoint="echo known", submission_id="known")
    client.wait_until_finish(known, timeout=60)
    [manager] = titled(MANAGER)
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


@pytest.mark.parametrize(
    "occasion",
    ["a submission", pytest.param("a stop", marks=pytest.mark.long), "the end of a job"],
)
def test_a_predecessor_writes_nothing_more(
    cluster: Cluster, client: JobSubmissionClient, tmp_path: Path, occasion: str
) -> None:
    """Nobody ends it or tells it: by itself it finds that another has claimed the next epoch."""
    running, shell = start_waiting_job(client, tmp_path)
    [manager] = titled(MANAGER)
    with ThreadPoolExecutor(1) as threads, Successor(cluster, manager) as successor:
        assert f"job:{running}" in successor.found
        answer: Future[object] | None = None
        if occasion == "a submission":
            answer = threads.submit(client.submit_job, entrypoint="echo", submission_id="late")
        elif occasion == "a stop":
            answer = threads.submit(client.stop_job, running)
        else:
            (tmp_path / "go").touch()
        assert successor.found_later() == successor.found
        assert runs(shell) or occasion == "the end of a job"
        if answer is not None:  # the next manager's, which Ray starts
            assert answer.result(60) in ("late", True)
    (tmp_path / "go").touch()
    info = client.wait_until_finish(running, timeout=60)
    if occasion == "a stop":
        assert info.status is JobStatus.STOPPED
    else:
        assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5)
    if occasion == "a submission":
        assert client.wait_until_finish("late", timeout=60).status is JobStatus.SUCCEEDED
    assert titled(MANAGER) != [manager]
    check_kv_is_as_listed(cluster)
