"""The environment variables of Ray's own job server keep their meaning (docs/configuration.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.archives import zip_of
from tests.cluster import Cluster, plugin, running_cluster
from tests.waiting import wait_until

#: A module that Ray's dashboard finds.
HOOK_MODULE = """
import time
def look():
    return {"mine": {"is_active": "ACTIVE", "reason": "by the hook", "timestamp": time.time()}}
"""
PLUGIN_MODULE = """
from ray._private.runtime_env.plugin import RuntimeEnvPlugin
class Mine(RuntimeEnvPlugin):
    name = "mine"
    def modify_context(self, uris, runtime_env, context, logger):
        context.env_vars["MINE"] = runtime_env["mine"]
"""
#: For which a package is kept that no job uses.
PIN_S = 3
#: A resource that the head has.
ON_HEAD = {"node:__internal_head__": 0.001}
MAX_TRIES = 12

KNOBS = {
    "RAY_JOB_START_TIMEOUT_SECONDS": "4",
    "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES": "1",
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "1.5",
    "RAY_DASHBOARD_REDACT_RUNTIME_ENV": "0",
    "RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": str(PIN_S),
    "RAY_CLUSTER_ACTIVITY_HOOK": "activity_hook.look",
    "RAY_RUNTIME_ENV_PLUGINS": '[{"class": "mine_plugin.Mine"}]',
    "OMP_NUM_THREADS": "3",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    hook = tmp_path_factory.mktemp("hook")
    (hook / "activity_hook.py").write_text(HOOK_MODULE)
    (hook / "mine_plugin.py").write_text(PLUGIN_MODULE)
    env = {**KNOBS, "PYTHONPATH": str(hook)}
    with plugin(enabled=True), running_cluster(env, cpus=1) as cluster:
        cluster.add_node(cpus=1)
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


def test_job_that_reserves_nothing_may_run_on_a_worker_node(client: JobSubmissionClient) -> None:
    head = client.submit_job(entrypoint="true", entrypoint_resources=ON_HEAD)
    head_id = client.wait_until_finish(head, timeout=60).driver_node_id

    def node_of_another() -> str | None:
        job_id = client.submit_job(entrypoint="true")
        return client.wait_until_finish(job_id, timeout=60).driver_node_id

    # Ray places it by chance, on this node or the other one.
    assert any(node_of_another() != head_id for _ in range(MAX_TRIES))


def test_stop_signal_and_wait_time_of_the_node(client: JobSubmissionClient) -> None:
    command = "trap 'echo got INT' INT; trap '' TERM; echo ready; while :; do sleep 0.1; done"
    job_id = client.submit_job(entrypoint=command)
    wait_until(lambda: "ready" in client.get_job_logs(job_id).split(), "it runs", 60)
    began = time.monotonic()
    client.stop_job(job_id)
    assert client.wait_until_finish(job_id, timeout=30).status is JobStatus.STOPPED
    assert time.monotonic() - began >= 1.5
    assert client.get_job_logs(job_id).endswith("got INT\n")


def test_browsers_are_shown_variables(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(entrypoint="true", runtime_env={"env_vars": {"SHOWN": "value"}})
    answer = requests.get(
        f"{client.address}/api/jobs/{job_id}", headers={"User-Agent": "Mozilla/5.0"}, timeout=30
    )
    assert answer.json()["runtime_env"]["env_vars"] == {"SHOWN": "value"}


def test_activity_hook(client: JobSubmissionClient) -> None:
    answer = requests.get(f"{client.address}/api/component_activities", timeout=30)
    assert answer.json()["mine"]["reason"] == "by the hook"


def test_package_that_no_job_uses_is_kept_as_long_as_asked(
    client: JobSubmissionClient, cluster: Cluster
) -> None:
    url = f"{client.address}/api/packages/gcs/pinned.zip"
    assert requests.put(url, data=zip_of(), timeout=30).status_code == 200
    assert requests.get(url, timeout=30).status_code == 200  # which pins it
    began = time.monotonic()
    # The route would pin it anew.
    gcs = GcsClient(address=cluster.gcs_address)
    wait_until(
        lambda: not gcs.internal_kv_exists(b"gcs://pinned.zip", None), "the package's end", 30
    )
    assert time.monotonic() - began >= PIN_S - 1


def test_threads_of_the_node(client: JobSubmissionClient) -> None:
    plain = client.submit_job(entrypoint="echo $OMP_NUM_THREADS")
    env = {"env_vars": {"OMP_NUM_THREADS": "5"}}
    own = client.submit_job(entrypoint="echo $OMP_NUM_THREADS", runtime_env=env)
    for job_id, threads in ((plain, "3"), (own, "5")):
        assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
        assert client.get_job_logs(job_id).endswith(f"\n{threads}\n")


def test_fields_of_a_plugin_of_the_cluster(client: JobSubmissionClient) -> None:
    def submit(runtime_env: dict[str, Any]) -> requests.Response:
        body: dict[str, Any] = {"entrypoint": "echo $MINE", "runtime_env": runtime_env}
        return requests.post(f"{client.address}/api/jobs/", json=body, timeout=30)

    assert submit({"_validate": False}).status_code == 400
    job_id = submit({"mine": "by the plugin"}).json()["submission_id"]
    assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
    assert client.get_job_logs(job_id).endswith("\nby the plugin\n")
