"""The plugin disabled and enabled again under running jobs, with Ray's own server used between."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs import plugin as ray_jobs_plugin
from ray_jobs.errors import RayJobsError
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.faces import (
    kill_dashboard,
    nobody_ends_it_for_a_dead_process,
    watched_dashboard,
)
from tests.faults.processes import of_jobs, runs, start_waiting_job
from tests.waiting import wait_until

FAILED, RUNNING = JobStatus.FAILED, JobStatus.RUNNING


@pytest.fixture(params=[pytest.param("each its own", marks=pytest.mark.long), "shared"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    env = {"RAY_AUTH_MODE": "disabled"}
    if request.param == "shared":
        env["RAY_JOBS_SUPERVISION"] = "dense"
    with (
        plugin(enabled=True),
        running_cluster(env, cpus=2) as cluster,
        nobody_ends_it_for_a_dead_process(cluster),
        watched_dashboard(cluster),
    ):
        yield cluster


def is_served_by_us(cluster: Cluster) -> bool | None:
    with JobSubmissionClient(cluster.address) as client:
        try:
            return client.get_server_info().is_ray_jobs
        except RayJobsError:
            return None


def restart_dashboard(cluster: Cluster, *, served_by_us: bool) -> None:
    kill_dashboard(cluster)
    wait_until(lambda: is_served_by_us(cluster) is served_by_us, "the dashboard", 60)


def shown_by_ray(cluster: Cluster, job_id: str) -> tuple[str, int | None]:
    """Return what Ray's own state API tells of a job, with whichever job server: the mirror."""
    with urllib.request.urlopen(f"{cluster.address}/api/v0/jobs?detail=1", timeout=30) as response:
        jobs = json.load(response)["data"]["result"]["result"]
    [found] = [each for each in jobs if each["submission_id"] == job_id]
    return found["status"], found.get("driver_exit_code")


def until_marked(client: JobSubmissionClient, job_id: str) -> None:
    wait_until(lambda: client.get_job_status(job_id) is FAILED, "the mark of Ray's server", 60)


def until_mirrored(cluster: Cluster, job_id: str) -> None:
    wait_until(lambda: shown_by_ray(cluster, job_id)[0] == "RUNNING", "the mirror", 10)


def start_own(client: JobSubmissionClient, folder: Path) -> str:
    command = f"while [ ! -e {folder}/go ]; do sleep 0.05; done; exit 6"
    job_id = client.submit_job(entrypoint=command, entrypoint_num_cpus=0.1)
    wait_until(lambda: client.get_job_status(job_id) is RUNNING, "it runs", 30)
    return job_id


def test_disabled_and_enabled_again(cluster: Cluster, tmp_path: Path) -> None:
    with JobSubmissionClient(cluster.address) as client:
        ending, ending_pid = start_waiting_job(client, tmp_path)
        stopped, stopped_pid = start_waiting_job(client, tmp_path / "never")
        own, own_stopped = start_own(client, tmp_path), start_own(client, tmp_path / "never")
        ended_meanwhile, _ = start_waiting_job(client, tmp_path / "soon")

    ray_jobs_plugin.disable(force=True)
    restart_dashboard(cluster, served_by_us=False)
    with JobSubmissionClient(cluster.address) as client:
        # Its manager starts with that, and looks for the supervisors of all that runs.
        by_ray = client.submit_job(entrypoint="echo by ray")
        assert client.wait_until_finish(by_ray, timeout=60).status is JobStatus.SUCCEEDED
        for each in (ending, stopped):
            until_marked(client, each)
        for each in (own, own_stopped):
            assert client.get_job_status(each) is RUNNING
        # What ends meanwhile ends rightly, whatever Ray's server has marked.
        (tmp_path / "soon").mkdir(exist_ok=True)
        (tmp_path / "soon" / "go").touch()
        wait_until(lambda: shown_by_ray(cluster, ended_meanwhile) == ("FAILED", 5), "its end", 30)
    assert runs(ending_pid)
    assert runs(stopped_pid)

    ray_jobs_plugin.enable()
    restart_dashboard(cluster, served_by_us=True)
    with JobSubmissionClient(cluster.address) as client:
        running = (ending, stopped, own, own_stopped)
        assert {client.get_job_status(each) for each in running} == {RUNNING}
        for each in running:
            until_mirrored(cluster, each)
        wait_until(lambda: by_ray in client.list_jobs(), "the job of Ray's server", 10)
        assert client.get_job_status(by_ray) is JobStatus.SUCCEEDED
        for each in (stopped, own_stopped):
            assert client.stop_job(each) is True
            assert client.wait_until_finish(each, timeout=30).status is JobStatus.STOPPED
            assert shown_by_ray(cluster, each)[0] == "STOPPED"
        (tmp_path / "go").touch()
        for each, code in ((ending, 5), (own, 6), (ended_meanwhile, 5)):
            info = client.wait_until_finish(each, timeout=30)
            assert (info.status, info.driver_exit_code) == (FAILED, code)
            assert shown_by_ray(cluster, each) == ("FAILED", code)
    wait_until(lambda: not of_jobs(), "no process is left", 5)
