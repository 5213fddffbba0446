"""Killing each of our processes under running jobs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.processes import kill_titled, parent_of, runs, start_waiting_job, titled
from tests.waiting import wait_until

#: No supervisor without a job: the one that is there is the job's.
NO_SPARE_SUPERVISORS = {"RAY_JOBS_WARM_SUPERVISORS": "0", "RAY_JOBS_WARM_IDLE_S": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=True), running_cluster(NO_SPARE_SUPERVISORS, cpus=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    # Of the test before.
    wait_until(lambda: not titled("ray::JobSupervisor"), "no supervisor without a job", 10)
    with JobSubmissionClient(cluster.address) as client:
        yield client


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_manager(client: JobSubmissionClient, tmp_path: Path, signum: signal.Signals) -> None:
    job_id, pid = start_waiting_job(client, tmp_path)
    waiting = client.submit_job(entrypoint="true", entrypoint_num_cpus=1000)
    [manager] = titled("ray::JobManager")
    os.kill(manager, signum)
    assert client.get_job_status(job_id) is JobStatus.RUNNING  # reads go on
    after = client.submit_job(entrypoint="echo after")  # waits for the successor
    assert client.wait_until_finish(after, timeout=60).status is JobStatus.SUCCEEDED
    assert Path(f"/proc/{pid}").exists()
    (tmp_path / "go").touch()
    info = client.wait_until_finish(job_id, timeout=30)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5)
    assert client.get_job_status(waiting) is JobStatus.PENDING
    assert client.stop_job(waiting) is True
    assert client.get_job_status(waiting) is JobStatus.STOPPED


@pytest.mark.parametrize("cpus", [None, 0.1], ids=["pooled", "own"])
def test_supervisor_that_is_ended_by_sigterm(
    client: JobSubmissionClient, cpus: float | None
) -> None:
    """By Ray's own handler it would live on, take no order any more, and keep its jobs."""
    job_id = client.submit_job(entrypoint="echo ready; sleep 1000", entrypoint_num_cpus=cpus)
    wait_until(lambda: "ready" in client.get_job_logs(job_id).split(), "it runs", 30)
    [supervisor] = titled("ray::JobSupervisor")
    os.kill(supervisor, signal.SIGTERM)
    assert client.stop_job(job_id) is True
    assert client.wait_until_finish(job_id, timeout=20).status is JobStatus.STOPPED
    assert not runs(supervisor)


def test_supervisor_and_manager_at_once(client: JobSubmissionClient, tmp_path: Path) -> None:
    job_id, _ = start_waiting_job(client, tmp_path)
    kill_titled("ray::JobSupervisor")
    kill_titled("ray::JobManager")
    (tmp_path / "go").touch()
    info = client.wait_until_finish(job_id, timeout=60)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5)


def test_supervisor_in_its_first_moment(client: JobSubmissionClient, tmp_path: Path) -> None:
    client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
    for number in range(4):
        go = tmp_path / f"go{number}"
        wait_until(lambda: not titled("ray::JobSupervisor"), "no other supervisor", 10)
        command = f"echo once; while [ ! -e {go} ]; do sleep 0.01; done"
        job_id = client.submit_job(entrypoint=command)
        wait_until(lambda: bool(titled("ray::JobSupervisor")), "its supervisor", 10)
        kill_titled("ray::JobSupervisor")
        go.touch()
        info = client.wait_until_finish(job_id, timeout=60)
        assert info.status is JobStatus.SUCCEEDED, info.message
        assert client.get_job_logs(job_id).splitlines().count("once") == 1


def test_supervisor_and_its_adopter(client: JobSubmissionClient, tmp_path: Path) -> None:
    job_id, shell = start_waiting_job(client, tmp_path)
    killed: set[int] = set()
    for _ in range(3):
        wait_until(lambda: bool(set(titled("ray::JobSupervisor")) - killed), "a supervisor", 30)
        killed.update(kill_titled("ray::JobSupervisor"))
    assert Path(f"/proc/{shell}").exists()
    assert client.stop_job(job_id) is True
    assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.STOPPED
    assert not Path(f"/proc/{shell}").exists()


def test_manager_at_the_moment_of_an_end(client: JobSubmissionClient, tmp_path: Path) -> None:
    job_id, _ = start_waiting_job(client, tmp_path)
    [manager] = titled("ray::JobManager")
    (tmp_path / "go").touch()
    client.wait_until_finish(job_id, timeout=30)
    os.kill(manager, signal.SIGKILL)
    wait_until(lambda: not titled("ray::JobSupervisor"), "no supervisor is left behind", 30)
    assert client.get_job_status(job_id) is JobStatus.FAILED


def test_manager_leads_on_though_nobody_asks(client: JobSubmissionClient, tmp_path: Path) -> None:
    job_id, _ = start_waiting_job(client, tmp_path)
    kill_titled("ray::JobSupervisor")
    kill_titled("ray::JobManager")
    wait_until(lambda: bool(titled("ray::JobSupervisor")), "the job is adopted", 30)
    (tmp_path / "go").touch()
    assert client.wait_until_finish(job_id, timeout=30).driver_exit_code == 5


def test_end_of_the_node(cluster: Cluster, client: JobSubmissionClient, tmp_path: Path) -> None:
    """The last one: it ends the cluster."""
    _, pid = start_waiting_job(client, tmp_path)
    keeper = parent_of(pid)
    zygote = parent_of(keeper)
    cluster.stop()
    processes = [Path(f"/proc/{each}") for each in (pid, keeper, zygote)]
    wait_until(lambda: not any(each.exists() for each in processes), "they are gone", 5)
