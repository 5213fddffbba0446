"""Supervisors that are kept warm, and those that many jobs share, killed under their jobs."""

from __future__ import annotations

from pathlib import Path

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.faults.common.modes import Mode
from tests.faults.processes import kill_titled, start_waiting_job, titled
from tests.faults.supervisors import wait_for_idle_supervisors
from tests.waiting import wait_until

JOBS = 6


def test_filled_up_though_nobody_asks(client: JobSubmissionClient, mode: Mode) -> None:
    wait_for_idle_supervisors(mode.idle)
    killed = kill_titled("ray::JobSupervisor")
    wait_for_idle_supervisors(mode.idle, besides=killed)


def test_killed_supervisors_and_manager(client: JobSubmissionClient, tmp_path: Path) -> None:
    jobs = [start_waiting_job(client, tmp_path) for _ in range(JOBS)]
    killed = kill_titled("ray::JobSupervisor")
    wait_until(lambda: bool(set(titled("ray::JobSupervisor")) - killed), "others", 30)
    stopped, _ = jobs.pop()
    assert client.stop_job(stopped) is True
    assert client.wait_until_finish(stopped, timeout=60).status is JobStatus.STOPPED
    kill_titled("ray::JobManager")
    assert client.get_job_status(jobs[0][0]) is JobStatus.RUNNING
    client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=120)
    assert all(Path(f"/proc/{pid}").exists() for _, pid in jobs)
    for pids in (kill_titled("ray::JobSupervisor"), kill_titled("ray::JobManager")):
        assert pids
    (tmp_path / "go").touch()
    for job_id, _ in jobs:
        info = client.wait_until_finish(job_id, timeout=120)
        assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5), info.message


def test_new_manager_keeps_the_pool(client: JobSubmissionClient, tmp_path: Path) -> None:
    job_id, _ = start_waiting_job(client, tmp_path)
    kill_titled("ray::JobManager")
    before = set(titled("ray::JobSupervisor"))  # nobody ends any for being spare
    for _ in range(5):
        client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
    assert before <= set(titled("ray::JobSupervisor"))
    (tmp_path / "go").touch()
    assert client.wait_until_finish(job_id, timeout=30).driver_exit_code == 5
