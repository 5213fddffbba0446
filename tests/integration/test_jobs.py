"""The life of a job, by our SDK."""

from __future__ import annotations

import contextlib
import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.errors import DuplicateSubmissionId, InvalidRequest, JobNotFound, JobNotTerminal
from ray_jobs.keeper.processes import oom_score
from ray_jobs.models import JobStatus
from tests.waiting import wait_until

#: By Ray's default: of all processes, the kernel kills workers first when it has no memory left.
WORKER_OOM_SCORE = "1000"
DRIVER = """
import ray
ray.init()
context = ray.get_runtime_context()
print("driver", context.get_job_id(), flush=True)
"""


def python(code: str) -> str:
    import shlex

    return f"python -c {shlex.quote(code)}"


def finish(client: JobSubmissionClient, **request: Any) -> tuple[str, Any, str]:
    """Submit, wait for the end, and return id, info and log."""
    job_id = client.submit_job(**request)
    info = client.wait_until_finish(job_id, timeout=120)
    return job_id, info, client.get_job_logs(job_id)


def test_success(client: JobSubmissionClient) -> None:
    before_ms = int(time.time() * 1000)
    job_id, info, log = finish(client, entrypoint="echo hello")
    after_ms = int(time.time() * 1000)
    assert job_id.startswith("raysubmit_")
    assert (info.status, info.driver_exit_code) == (JobStatus.SUCCEEDED, 0)
    assert info.message == "Job finished successfully."
    assert info.error_type is None
    assert before_ms <= info.start_time <= info.end_time <= after_ms
    assert len(info.driver_node_id) == 56
    assert info.driver_agent_http_address.startswith("http://")
    assert log == f"Running entrypoint for job {job_id}: echo hello\nhello\n"


def test_failure_tells_code_and_last_lines(client: JobSubmissionClient) -> None:
    _, info, _ = finish(client, entrypoint="for i in $(seq 30); do echo line $i; done; exit 7")
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 7)
    assert info.error_type == "JOB_ENTRYPOINT_COMMAND_ERROR"
    head, _, tail = info.message.partition("\n")
    assert head == (
        "Job entrypoint command failed with exit code 7, last available logs"
        " (truncated to 20,000 chars):"
    )
    assert tail.splitlines() == [f"line {n}" for n in range(21, 31)]


def test_death_by_signal(client: JobSubmissionClient) -> None:
    _, info, _ = finish(client, entrypoint="kill -9 $$")
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, -9)


@pytest.mark.parametrize(
    "text", ['it\'s "quoted" `x` $HOME', "two\nlines", "\u00fc\u4e16\U0001f680", "back\\slash *"]
)
def test_any_text_in_the_entrypoint(client: JobSubmissionClient, text: str) -> None:
    import shlex

    _, info, log = finish(client, entrypoint=f"printf %s {shlex.quote(text)}")
    assert info.status is JobStatus.SUCCEEDED
    assert log.endswith(text)


def test_log_with_any_bytes(client: JobSubmissionClient, stock: Any) -> None:
    job_id, info, log = finish(client, entrypoint=r"printf 'a\377b\303\251\000c\n'")
    assert info.status is JobStatus.SUCCEEDED
    assert log.endswith("a\ufffdb\u00e9\x00c\n")
    assert stock.get_job_logs(job_id) == log
    assert "".join(client.tail_job_logs(job_id)) == log


def test_metadata_in_hundreds(client: JobSubmissionClient) -> None:
    metadata = {f"key {n}": f"value \u00fc {n}" for n in range(400)}
    job_id, info, log = finish(client, entrypoint=python(DRIVER), metadata=metadata)
    assert info.status is JobStatus.SUCCEEDED, log
    assert info.metadata == metadata
    # The driver has them too: that is how it was linked to its job.
    assert client.get_job_info(info.job_id).submission_id == job_id


def test_one_winner_for_one_id(client: JobSubmissionClient, cluster: Any) -> None:
    winners: list[str] = []
    losers: list[BaseException] = []
    barrier = threading.Barrier(8)

    def submit() -> None:
        with JobSubmissionClient(cluster.address) as each:
            barrier.wait()
            try:
                winners.append(each.submit_job(entrypoint="true", submission_id="contested"))
            except DuplicateSubmissionId as error:
                losers.append(error)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == ["contested"]
    assert len(losers) == 7
    assert client.wait_until_finish("contested", timeout=60).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("method", ["get_job_info", "stop_job", "delete_job", "get_job_logs"])
def test_unknown_job(client: JobSubmissionClient, method: str) -> None:
    with pytest.raises(JobNotFound, match="nobody does not exist"):
        getattr(client, method)("nobody")


def zygote_of(folder: Path) -> int:
    """Return the pid of a cluster's zygote; its keepers have the same command line."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if f"{folder}/session_".encode() in words and b"\0zygote-" in words and parent == "1":
                return int(process.name)
    raise AssertionError("no zygote")


def test_entrypoint_that_the_kernel_refuses(client: JobSubmissionClient, cluster: Any) -> None:
    finish(client, entrypoint="true")  # the head's zygote runs by now
    zygote = zygote_of(cluster.folder)
    # What a new program gets of arguments and variables is a fourth of its stack at most.
    limits = resource.prlimit(zygote, resource.RLIMIT_STACK)
    resource.prlimit(zygote, resource.RLIMIT_STACK, (512 * 1024, limits[1]))
    try:
        _, info, _ = finish(client, entrypoint="true " + "x" * 130_000)
    finally:
        resource.prlimit(zygote, resource.RLIMIT_STACK, limits)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, None)
    assert info.error_type == "JOB_ENTRYPOINT_COMMAND_START_ERROR"
    assert info.message.startswith("The entrypoint could not be started: ")
    assert "Argument list too long" in info.message


def test_unusual_ids(client: JobSubmissionClient) -> None:
    for submission_id in ("with space", "d.o.t", "\u00fc\u4e16", "per%cent?#"):
        job_id, info, log = finish(client, entrypoint="echo x", submission_id=submission_id)
        assert job_id == submission_id
        assert info.status is JobStatus.SUCCEEDED
        assert log.endswith("x\n")
        assert client.delete_job(job_id) is True
    with pytest.raises(InvalidRequest, match="slash"):
        client.submit_job(entrypoint="true", submission_id="a/b")


def test_delete(client: JobSubmissionClient) -> None:
    job_id = client.submit_job(entrypoint="sleep 60")
    wait_until(lambda: client.get_job_status(job_id) is JobStatus.RUNNING, "running")
    with pytest.raises(JobNotTerminal, match="is in a non-terminal state RUNNING"):
        client.delete_job(job_id)
    client.stop_job(job_id)
    client.wait_until_finish(job_id, timeout=30)
    assert client.delete_job(job_id) is True
    with pytest.raises(JobNotFound):
        client.get_job_info(job_id)
    assert job_id not in client.list_jobs()


def test_id_of_a_deleted_job_is_free_and_its_log_kept(
    client: JobSubmissionClient, cluster: Any
) -> None:
    finish(client, entrypoint="echo first", submission_id="again")
    client.delete_job("again")
    _, _, log = finish(client, entrypoint="echo second", submission_id="again")
    assert "first" not in log
    kept = [path.read_text() for path in cluster.logs_dir.glob("job-driver-again.log.*")]
    assert any("first" in text for text in kept)


def test_id_is_free_the_moment_its_job_is_deleted(client: JobSubmissionClient) -> None:
    for round_ in range(4):
        _, info, log = finish(client, entrypoint=f"echo {round_}", submission_id="in a loop")
        assert info.status is JobStatus.SUCCEEDED, info.message
        assert log.endswith(f"{round_}\n")
        client.delete_job("in a loop")


def test_driver_ids_work_like_submission_ids(client: JobSubmissionClient) -> None:
    code = (
        DRIVER
        + "ray.shutdown(); ray.init(); "
        + ("print('driver', ray.get_runtime_context().get_job_id(), flush=True)")
    )
    job_id, info, log = finish(client, entrypoint=python(code))
    assert info.status is JobStatus.SUCCEEDED, log
    drivers = [line.split()[1] for line in log.splitlines() if line.startswith("driver ")]
    assert len(drivers) == 2
    assert info.job_id == info.driver_info.id == max(drivers)
    assert info.driver_info.pid.isdigit()
    for driver in drivers:
        assert client.get_job_info(driver).submission_id == job_id
        assert client.get_job_logs(driver) == log
        assert client.stop_job(driver) is False
    assert client.delete_job(drivers[0]) is True


def test_job_with_settings_of_its_own(client: JobSubmissionClient) -> None:
    code = """
import os, ray
ray.init(namespace="mine", runtime_env={"env_vars": {"OWN": "1"}})
@ray.remote
def see():
    return os.environ.get("OWN"), os.environ.get("FROM_JOB"), ray.get_runtime_context().namespace
print(ray.get(see.remote()))
"""
    env = {"env_vars": {"FROM_JOB": "2"}}
    _, info, log = finish(client, entrypoint=python(code), runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, log
    assert log.endswith("('1', '2', 'mine')\n")


def test_driver_started_outside_is_listed(client: JobSubmissionClient, cluster: Any) -> None:
    import subprocess

    from tests.cluster import BIN

    code = f"import ray; ray.init('{cluster.gcs_address}', logging_level='error'); " + (
        "print(ray.get_runtime_context().get_job_id())"
    )
    done = subprocess.run(
        [str(BIN / "python"), "-c", code], env=cluster.env, capture_output=True, text=True
    )
    driver_id = done.stdout.split()[-1]
    info = client.get_job_info(driver_id)
    assert (info.type, info.submission_id) == ("DRIVER", None)
    wait_until(
        lambda: client.list_jobs()[driver_id].status is JobStatus.SUCCEEDED, "the driver's end"
    )
    with pytest.raises(InvalidRequest, match="submission type jobs"):
        client.stop_job(driver_id)


def test_nested_submission(client: JobSubmissionClient) -> None:
    code = (
        "from ray_jobs import JobSubmissionClient; c = JobSubmissionClient();"
        " i = c.submit_job(entrypoint='true'); print(c.wait_until_finish(i, timeout=60).status)"
    )
    _, info, log = finish(client, entrypoint=python(code))
    assert info.status is JobStatus.SUCCEEDED, log
    assert log.endswith("SUCCEEDED\n")


def test_the_kernel_kills_a_job_before_its_keeper(client: JobSubmissionClient) -> None:
    command = "cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj"
    _, _, log = finish(client, entrypoint=command)
    of_raylet = oom_score()  # it is below this process
    assert of_raylet is not None
    assert log.split()[-2:] == [WORKER_OOM_SCORE, str(max(0, of_raylet))]


def test_environment_of_the_entrypoint(client: JobSubmissionClient) -> None:
    code = "import json, os; print(json.dumps(dict(os.environ))); print(os.nice(0))"
    asked = {"env_vars": {"A": "${HOME}/x"}}
    _, _, log = finish(client, entrypoint=python(code), runtime_env=asked)
    env_line, nice_line = log.splitlines()[-2:]
    env = json.loads(env_line)
    assert env["A"] == env["HOME"] + "/x"
    assert env["NODE_VARIABLE"] == "from the node"
    assert env["PYTHONUNBUFFERED"] == "1"
    assert ":" in env["RAY_ADDRESS"]
    assert "OMP_NUM_THREADS" not in env
    assert "RAY_worker_niceness" not in env
    assert "RAY_RAYLET_PID" not in env
    assert nice_line == "0"
    config = json.loads(env["RAY_JOB_CONFIG_JSON_ENV_VAR"])
    assert config["runtime_env"] == asked
