"""Jobs that Ray places on another node than the head."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any

import pytest

from ray_jobs import JobInfo, JobSubmissionClient
from ray_jobs.keeper import zygote_source
from ray_jobs.models import JobStatus
from ray_jobs.supervisor.zygotes import zygote_name
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.processes import named
from tests.waiting import wait_until

ELSEWHERE = {"elsewhere": 1.0}
MAX_LOG_BYTES = 2 * 1024 * 1024


#: Runs when an interpreter starts that finds it.
WITHOUT_RAY_JOBS = """
import sys
class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "ray_jobs":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(WITHOUT_RAY_JOBS)
    with plugin(enabled=True), running_cluster(cpus=1) as cluster:
        # On nodes other than the head ray_jobs isn't installed.
        cluster.env["PYTHONPATH"] = str(folder)
        cluster.add_node(cpus=1, resources=ELSEWHERE)
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        yield client


def head_of(client: JobSubmissionClient) -> str:
    job_id = client.submit_job(entrypoint="true")
    node_id = client.wait_until_finish(job_id, timeout=60).driver_node_id
    assert node_id is not None
    return node_id


def test_log_is_read_while_and_after_it_runs(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(
        entrypoint="echo first; while [ ! -e go ]; do sleep 0.05; done; seq 200000; rm go",
        entrypoint_resources=ELSEWHERE,
    )
    lines = client.tail_job_logs(job_id)
    seen = ""
    while "first\n" not in seen:
        seen += next(lines)
    info = client.get_job_info(job_id)
    assert info.status is JobStatus.RUNNING
    # Both nodes of this test share one disk, and the entrypoint's working directory.
    helper = client.submit_job(entrypoint="touch go")
    seen += "".join(lines)
    numbers = "".join(f"{n}\n" for n in range(1, 200_001))
    assert seen.endswith(f"first\n{numbers}")
    info = client.wait_until_finish(job_id, timeout=60)
    assert info.status is JobStatus.SUCCEEDED
    assert info.driver_node_id != client.wait_until_finish(helper, timeout=60).driver_node_id
    assert client.get_job_logs(job_id) == seen


def test_ray_jobs_is_missing_there(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(
        entrypoint="python -c 'import ray; print(ray); import ray_jobs'",
        entrypoint_resources=ELSEWHERE,
    )
    assert client.wait_until_finish(job_id, timeout=60).driver_exit_code == 1
    log = client.get_job_logs(job_id)
    assert "<module 'ray' from" in log
    assert "No module named 'ray_jobs'" in log


def test_its_log_and_the_copy_are_bounded(client: JobSubmissionClient, cluster: Cluster) -> None:
    job_id = client.submit_job(
        entrypoint="seq 3000000", entrypoint_resources=ELSEWHERE, max_log_bytes=MAX_LOG_BYTES
    )
    assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
    name = f"job-driver-{job_id}.log"
    [source] = cluster.folder.glob(f"node*/session_2*/logs/{name}")
    for log in (cluster.logs_dir / name, source):
        assert log.stat().st_size > 20_000_000
        assert log.stat().st_blocks * 512 <= MAX_LOG_BYTES
    first, notice, last = client.get_job_logs(job_id).partition("[ray-jobs]")
    assert "were dropped" in notice + last.splitlines()[0]
    assert first.splitlines()[1:4] == ["1", "2", "3"]
    numbers = [int(line) for line in last.splitlines()[2:]]
    assert numbers == list(range(numbers[0], 3_000_001))


def test_files_there_are_their_owners(client: JobSubmissionClient, cluster: Cluster) -> None:
    job_id = client.submit_job(entrypoint="echo up; sleep 300", entrypoint_resources=ELSEWHERE)
    wait_until(lambda: "up" in client.get_job_logs(job_id).split(), "it runs", 60)
    [session] = cluster.folder.glob("node1/session_2*")
    work_dir = session / "ray_jobs"
    within = list(work_dir.rglob("*"))
    folders = [work_dir, *(path for path in within if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    # A link has no mode of its own: a keeper's tells by its name who has begun the attempt.
    ours = [path for path in within if not path.is_dir() and not path.is_symlink()]
    assert any(path.is_socket() for path in ours)
    ours.append(session / "logs" / f"job-driver-{job_id}.log")
    ours.append(cluster.logs_dir / f"job-driver-{job_id}.log")
    assert {stat.S_IMODE(path.stat().st_mode) for path in ours} == {0o600}
    client.stop_job(job_id)


def test_failure_and_stop(client: JobSubmissionClient) -> None:
    failed = client.submit_job(entrypoint="echo why; exit 9", entrypoint_resources=ELSEWHERE)
    info = client.wait_until_finish(failed, timeout=60)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 9)
    assert info.message is not None
    assert info.message.endswith("why\n")
    job_id = client.submit_job(entrypoint="echo up; sleep 300", entrypoint_resources=ELSEWHERE)
    wait_until(lambda: "up" in client.get_job_logs(job_id).split(), "it runs", 60)
    assert client.stop_job(job_id) is True
    assert client.wait_until_finish(job_id, timeout=30).status is JobStatus.STOPPED


def test_job_that_reserves_nothing_runs_on_the_head(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(entrypoint="true", runtime_env={"env_vars": {"A": "1"}})
    assert client.wait_until_finish(job_id, timeout=60).driver_node_id == head_of(client)


def test_label_selector_places_the_job(client: JobSubmissionClient) -> None:
    head = head_of(client)
    label = {"ray.io/node-id": f"!in({head})"}
    job_id = client.submit_job(entrypoint="true", entrypoint_label_selector=label)
    info = client.wait_until_finish(job_id, timeout=60)
    assert info.status is JobStatus.SUCCEEDED, info.message
    assert info.driver_node_id != head


def test_ray_reads_the_log_too(client: JobSubmissionClient, cluster: Any) -> None:
    import requests

    job_id = client.submit_job(entrypoint="echo there", entrypoint_resources=ELSEWHERE)
    info = client.wait_until_finish(job_id, timeout=60)
    # What Ray's own server would ask after the plugin was disabled: the agent of the node.
    url = f"{info.driver_agent_http_address}/api/job_agent/jobs/{job_id}/logs"
    assert requests.get(url, timeout=30).json()["logs"].endswith("there\n")


def test_node_on_which_nothing_can_be_started(
    client: JobSubmissionClient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: what it needs can't be made."""
    broken = {"broken": 1.0}
    cluster.add_node(cpus=1, resources=broken)
    folder = cluster.last_node_folder
    wait_until(lambda: bool([*folder.glob("session_*/logs")]), "its files", 60)
    [logs] = {each.resolve() for each in folder.glob("session_*/logs")}
    wait_until(lambda: len(named("raylet", argument=str(folder))) == 1, "its raylet", 60)
    [raylet] = named("raylet", argument=str(folder))
    monkeypatch.setenv("RAY_RAYLET_PID", str(raylet))
    in_the_way = logs.with_name("ray_jobs") / f"{zygote_name(zygote_source())}.lock"
    in_the_way.parent.mkdir(mode=0o700)
    in_the_way.mkdir()

    def run() -> JobInfo:
        job_id = client.submit_job(entrypoint="true", entrypoint_resources=broken)
        return client.wait_until_finish(job_id, timeout=60)

    for _ in range(2):  # the first one's supervisor is gone, with what it had reserved
        info = run()
        assert info.status is JobStatus.FAILED
        assert "The entrypoint could not be started: The node's zygote" in (info.message or "")
        assert f"Is a directory: '{in_the_way}'" in (info.message or ""), info.message
    in_the_way.rmdir()
    assert run().status is JobStatus.SUCCEEDED
    cluster.kill_last_node()


def test_node_that_dies_fails_its_job(client: JobSubmissionClient, cluster: Cluster) -> None:
    cluster.add_node(cpus=1, resources={"doomed": 1})
    job_id = client.submit_job(
        entrypoint="echo last words; sleep 300", entrypoint_resources={"doomed": 1}
    )
    wait_until(lambda: "last words" in client.get_job_logs(job_id), "it runs", 60)
    cluster.kill_last_node()
    info = client.wait_until_finish(job_id, timeout=120)
    assert info.status is JobStatus.FAILED
    assert info.error_type == "JOB_SUPERVISOR_ACTOR_DIED"
    assert "last words" in client.get_job_logs(job_id)
