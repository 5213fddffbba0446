"""The plugin disabled and enabled again under running jobs, with Ray's own server used between."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs import plugin as ray_jobs_plugin
from ray_jobs.errors import RayJobsError
from ray_jobs.models import JobStatus
from tests.cluster import Cluster
from tests.faults.faces import kill_dashboard, lenient_cluster, watched_dashboard
from tests.faults.judging import judged, starts_in
from tests.faults.processes import runs, start_waiting_job
from tests.faults.table import Row, report, rounds, seeded
from tests.waiting import wait_until

FAILED, RUNNING, STOPPED = JobStatus.FAILED, JobStatus.RUNNING, JobStatus.STOPPED
#: Before the plugin is disabled, while a job is being stopped (which takes three seconds), and
#: before it is enabled again.
PAUSE_S = (0.0, 1.0)
#: Such a job has a supervisor of its own.
OWN = {"entrypoint_num_cpus": 0.1}


# For each round: Ray's own manager, in the agent, looks at what runs once, when it is used first.
@pytest.fixture(params=[pytest.param("each its own", marks=pytest.mark.long), "shared"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    env = {"RAY_AUTH_MODE": "disabled"}
    if request.param == "shared":
        env["RAY_JOBS_SUPERVISION"] = "dense"
    with lenient_cluster(env) as cluster, watched_dashboard(cluster):
        yield cluster


def is_served_by_us(cluster: Cluster) -> bool | None:
    with JobSubmissionClient(cluster.address) as client:
        try:
            return client.get_server_info().is_ray_jobs
        except RayJobsError:
            return None


def restart_dashboard(cluster: Cluster, *, served_by_us: bool) -> float:
    """Return the seconds until it answers again."""
    began = time.monotonic()
    kill_dashboard(cluster)
    wait_until(lambda: is_served_by_us(cluster) is served_by_us, "the dashboard", 60)
    return time.monotonic() - began


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


def start_deaf(client: JobSubmissionClient) -> str:
    """Have a job run that ends some seconds after its stop."""
    job_id = client.submit_job(
        entrypoint="trap '' TERM; echo pid $$; while :; do sleep 0.1; done",
        runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "3"}},
    )
    wait_until(lambda: starts_in(client.get_job_logs(job_id)) == 1, "it runs", 30)
    return job_id


@rounds(2)
def test_disabled_and_enabled_again(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path
) -> None:
    name = f"plugin off and on ({request.node.callspec.params['cluster']})"
    rng = seeded(name)
    with JobSubmissionClient(cluster.address) as client:
        ending, ending_pid = start_waiting_job(client, tmp_path)
        stopped, stopped_pid = start_waiting_job(client, tmp_path / "never")
        own, _ = start_waiting_job(client, tmp_path, 6, **OWN)
        own_stopped, _ = start_waiting_job(client, tmp_path / "never", 6, **OWN)
        ended_meanwhile, _ = start_waiting_job(client, tmp_path / "soon")
        queued = client.submit_job(entrypoint="exit 0", entrypoint_resources={"nowhere": 1})
        stopping = start_deaf(client)
        assert client.stop_job(stopping) is True

    time.sleep(rng.uniform(*PAUSE_S))
    ray_jobs_plugin.disable(force=True)
    away_s = [restart_dashboard(cluster, served_by_us=False)]
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

    time.sleep(rng.uniform(*PAUSE_S))
    ray_jobs_plugin.enable()
    away_s.append(restart_dashboard(cluster, served_by_us=True))
    with JobSubmissionClient(cluster.address) as client:
        running = (ending, stopped, own, own_stopped)
        assert {client.get_job_status(each) for each in running} == {RUNNING}
        for each in running:
            until_mirrored(cluster, each)
        wait_until(lambda: by_ray in client.list_jobs(), "the job of Ray's server", 10)
        assert client.get_job_status(by_ray) is JobStatus.SUCCEEDED
        assert client.get_job_status(stopping) is STOPPED
        assert client.get_job_status(queued) is JobStatus.PENDING
        assert client.stop_job(queued) is True
        assert client.get_job_status(queued) is STOPPED
        began = time.monotonic()
        new = client.submit_job(entrypoint="true")
        submission_s = time.monotonic() - began
        for each in (stopped, own_stopped):
            assert client.stop_job(each) is True
            assert client.wait_until_finish(each, timeout=30).status is STOPPED
            assert shown_by_ray(cluster, each)[0] == "STOPPED"
        (tmp_path / "go").touch()
        for each, code in ((ending, 5), (own, 6), (ended_meanwhile, 5)):
            client.wait_until_finish(each, timeout=30)
            assert shown_by_ray(cluster, each) == ("FAILED", code)
        client.wait_until_finish(new, timeout=30)
        ends: dict[str, tuple[JobStatus, int | None]] = {
            ending: (FAILED, 5),
            own: (FAILED, 6),
            ended_meanwhile: (FAILED, 5),
            by_ray: (JobStatus.SUCCEEDED, 0),
            new: (JobStatus.SUCCEEDED, 0),
            **dict.fromkeys((stopped, own_stopped, stopping, queued), (STOPPED, None)),
        }
        verdict = judged(client, ends)
    report(Row(name, len(away_s), verdict, max(away_s), submission_s))
