"""Stopping jobs, in every state."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster
from tests.waiting import wait_until

from .test_jobs import finish


def running(client: JobSubmissionClient, job_id: str, word: str = "ready") -> str:
    wait_until(lambda: word in client.get_job_logs(job_id).split(), f"{word} of {job_id}", 60)
    return client.get_job_logs(job_id)


def test_running_job(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(entrypoint="echo ready; sleep 300")
    running(client, job_id)
    assert client.stop_job(job_id) is True
    info = client.wait_until_finish(job_id, timeout=30)
    assert (info.status, info.message) == (JobStatus.STOPPED, "Job was intentionally stopped.")
    assert info.driver_exit_code is None
    assert client.stop_job(job_id) is False


def test_signal_and_wait_time_of_the_job(client: JobSubmissionClient) -> None:
    command = "trap 'echo got INT; exit 0' INT; echo ready; while :; do sleep 0.1; done"
    env = {"env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT"}}
    job_id = client.submit_job(entrypoint=command, runtime_env=env)
    running(client, job_id)
    client.stop_job(job_id)
    assert client.wait_until_finish(job_id, timeout=30).status is JobStatus.STOPPED
    assert "got INT" in client.get_job_logs(job_id)


def test_deaf_job_is_killed_after_the_wait_time(client: JobSubmissionClient) -> None:
    command = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "1"}}
    job_id = client.submit_job(entrypoint=command, runtime_env=env)
    running(client, job_id)
    began = time.monotonic()
    client.stop_job(job_id)
    assert client.wait_until_finish(job_id, timeout=30).status is JobStatus.STOPPED
    assert time.monotonic() - began >= 1


def test_nothing_is_left(client: JobSubmissionClient) -> None:
    command = "setsid sh -c 'echo pid $$; exec sleep 300' & sleep 300 & echo pid $!; wait"
    job_id = client.submit_job(entrypoint=command)

    def pids() -> list[int]:
        lines = client.get_job_logs(job_id).splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("pid ")]

    wait_until(lambda: len(pids()) == 2, "both pids", 60)
    client.stop_job(job_id)
    client.wait_until_finish(job_id, timeout=30)
    assert not [pid for pid in pids() if Path(f"/proc/{pid}").exists()]


def test_job_that_waits_for_resources(client: JobSubmissionClient, cluster: Cluster) -> None:
    job_id = client.submit_job(entrypoint="true", entrypoint_num_cpus=1000)
    details = client.get_job_details(job_id)
    assert details.status is JobStatus.PENDING
    assert "waiting for resources" in (details.message or "")
    assert details.pending_reason == "waiting for resources (1000 CPU)"
    assert client.stop_job(job_id) is True
    info = client.wait_until_finish(job_id, timeout=10)
    assert info.status is JobStatus.STOPPED
    assert info.driver_node_id is None
    # What it held, or waited for, is free.
    _, info, _ = finish(client, entrypoint="true", entrypoint_num_cpus=4)
    assert info.status is JobStatus.SUCCEEDED


def test_job_whose_environment_is_being_installed(client: JobSubmissionClient) -> None:
    env = {"pip": {"packages": ["no-such-package-at-all"], "pip_check": False}}
    job_id = client.submit_job(entrypoint="true", runtime_env=env)
    assert client.get_job_status(job_id) is JobStatus.PENDING
    assert client.stop_job(job_id) is True
    assert client.get_job_status(job_id) is JobStatus.STOPPED


def test_job_that_installs_its_environment_frees_what_it_held(
    client: JobSubmissionClient, cluster: Cluster
) -> None:
    env = {"pip": ["iniconfig==1.1.1"]}
    job_id = client.submit_job(entrypoint="true", runtime_env=env, entrypoint_num_cpus=4)
    folder = str(cluster.folder).encode()

    def installs() -> bool:
        return any(
            folder in command and b"\0-m\0pip\0install\0" in command for command in command_lines()
        )

    wait_until(installs, "its environment is being installed", 30)
    assert client.get_job_status(job_id) is JobStatus.PENDING
    assert client.stop_job(job_id) is True
    assert client.get_job_status(job_id) is JobStatus.STOPPED
    _, info, _ = finish(client, entrypoint="true", entrypoint_num_cpus=4)
    assert info.status is JobStatus.SUCCEEDED


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.5, 0.7, 0.8, 0.9])
def test_stop_at_any_moment_of_the_start(
    client: JobSubmissionClient, cluster: Cluster, delay_s: float
) -> None:
    job_id = client.submit_job(entrypoint=f"echo pid $$; exec sleep 300.{os.getpid()}")
    time.sleep(delay_s)  # the moment itself is what is tested
    client.stop_job(job_id)
    assert client.wait_until_finish(job_id, timeout=30).status is JobStatus.STOPPED
    for line in client.get_job_logs(job_id).splitlines():
        if line.startswith("pid "):
            assert not Path(f"/proc/{line.split()[1]}").exists()
