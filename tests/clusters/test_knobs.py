"""The environment variables of Ray's own job server keep their meaning (docs/configuration.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster

KNOBS = {
    "RAY_JOB_START_TIMEOUT_SECONDS": "4",
    "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES": "1",
    "RAY_STREAM_RUNTIME_ENV_LOG_TO_JOB_DRIVER_LOG": "1",
    "OMP_NUM_THREADS": "3",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=True), running_cluster(KNOBS, cpus=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        yield client


def test_start_timeout(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(entrypoint="true", entrypoint_num_cpus=1000)
    info = client.wait_until_finish(job_id, timeout=60)
    assert info.status is JobStatus.FAILED
    assert info.error_type == "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
    assert "failed to start within 4 seconds" in (info.message or "")
    assert "RAY_JOB_START_TIMEOUT_SECONDS" in (info.message or "")
    assert "waiting for resources" in client.get_job_logs(job_id)


def test_setup_of_the_environment_is_in_the_log(client: JobSubmissionClient) -> None:
    env = {"pip": ["no-such-package-in-the-index"]}
    job_id = client.submit_job(entrypoint="true", runtime_env=env)
    client.wait_until_finish(job_id, timeout=120)
    log = client.get_job_logs(job_id)
    assert log.splitlines()[0].endswith("Runtime env is setting up.")
    assert "Creating virtualenv" in log or "virtualenv" in log


def test_threads_of_the_node(client: JobSubmissionClient) -> None:
    plain = client.submit_job(entrypoint="echo $OMP_NUM_THREADS")
    env = {"env_vars": {"OMP_NUM_THREADS": "5"}}
    own = client.submit_job(entrypoint="echo $OMP_NUM_THREADS", runtime_env=env)
    for job_id, threads in ((plain, "3"), (own, "5")):
        assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
        assert client.get_job_logs(job_id).endswith(f"\n{threads}\n")
