"""The supervisors of 64 jobs killed: their jobs are adopted, as if nothing had been."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import plugin, running_cluster
from tests.faults.campaign import times
from tests.faults.gated import Gate, GatedJob
from tests.faults.processes import kill_titled, runs, titled
from tests.waiting import wait_until

SUPERVISOR = "ray::JobSupervisor"
MANAGER = "ray::JobManager"
#: What one supervisor takes.
JOBS = 64
STOPPED = 20
ADOPTED_S = 3.0


@pytest.fixture(scope="module")
def client() -> Iterator[JobSubmissionClient]:
    with (
        plugin(enabled=True),
        running_cluster({"RAY_JOBS_SUPERVISION": "dense"}, cpus=2) as cluster,
        JobSubmissionClient(cluster.address) as client,
    ):
        yield client


def stop_all(client: JobSubmissionClient, jobs: list[GatedJob]) -> None:
    with ThreadPoolExecutor(len(jobs)) as threads:
        assert all(threads.map(lambda job: client.stop_job(job.id), jobs))
    for job in jobs:
        info = client.wait_until_finish(job.id, timeout=30)
        assert info.status is JobStatus.STOPPED, info.message


def wait_for_supervisors(count: int) -> None:
    wait_until(lambda: len(titled(SUPERVISOR)) >= count, "the pool is refilled", 30)


def check_ended(client: JobSubmissionClient, jobs: list[GatedJob], not_before: float) -> None:
    """Check that jobs end with their own code, not before a time and not after now."""
    wait_until(lambda: not any(runs(job.keeper) for job in jobs), "all have ended", 30)
    now_ms = time.time() * 1000
    for job in jobs:
        info = client.wait_until_finish(job.id, timeout=60)
        assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, job.code), info.message
        assert info.end_time is not None
        assert not_before * 1000 - 1 <= info.end_time <= now_ms
        log = client.get_job_logs(job.id)
        assert log.splitlines()[1:] == [f"pid {job.shell}"]


def test_jobs_of_a_killed_supervisor(client: JobSubmissionClient, tmp_path: Path) -> None:
    for number in range(times(1)):
        with Gate(tmp_path / f"one{number}") as gate:
            jobs = gate.start(client, JOBS)
            before = len(titled(SUPERVISOR))
            began = time.monotonic()
            assert kill_titled(SUPERVISOR)
            stop_all(client, jobs[:STOPPED])
            print(f"{STOPPED} of {JOBS} stopped {time.monotonic() - began:.2f} s after the kill")
            assert time.monotonic() - began < ADOPTED_S
            assert all(job.runs() for job in jobs[STOPPED:])
            wait_for_supervisors(before)
            opened = time.time()
            gate.open(JOBS - STOPPED)
            check_ended(client, jobs[STOPPED:], opened)


def test_jobs_that_end_while_nobody_watches(client: JobSubmissionClient, tmp_path: Path) -> None:
    """The manager is killed too, so that they aren't adopted before they have ended."""
    for number in range(times(1)):
        with Gate(tmp_path / f"two{number}") as gate:
            jobs = gate.start(client, JOBS)
            assert kill_titled(MANAGER)
            assert kill_titled(SUPERVISOR)
            opened = time.time()
            gate.open(JOBS)
            check_ended(client, jobs, opened)
