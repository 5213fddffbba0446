"""`ray job`, unchanged, against our server: every command with its options."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ray_jobs import JobSubmissionClient
from tests.waiting import wait_until

from .conftest import RunCommand


def test_submit_follows_and_succeeds(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os; print('ran', os.environ['A'], flush=True)\n")
    env = json.dumps({"env_vars": {"A": "b c"}})
    done = run_command(
        "ray", "job", "submit", "--submission-id=cli-1", "--working-dir", str(tmp_path),
        "--runtime-env-json", env, "--metadata-json", '{"team": "x"}', "--entrypoint-num-cpus=1",
        "--headers", '{"X-Test": "1"}', "--verify", "false", "--", "python", "script.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Job 'cli-1' submitted successfully" in done.stdout + done.stderr
    assert "ran b c\n" in done.stdout
    assert "Job 'cli-1' succeeded" in done.stdout + done.stderr


def test_submit_follows_and_fails(run_command: RunCommand) -> None:
    done = run_command("ray", "job", "submit", "--", "sh", "-c", "echo out; exit 5")
    assert done.returncode == 1
    assert "failed with exit code 5" in done.stdout + done.stderr


def test_runtime_env_file_and_no_wait_then_the_rest(
    run_command: RunCommand, client: JobSubmissionClient, tmp_path: Path
) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars:\n  WORD: from-yaml\n")
    submitted = run_command(
        "ray", "job", "submit", "--no-wait", "--runtime-env", str(file),
        "--entrypoint-resources", "{}", "--entrypoint-memory", "1000000", "--",
        "sh", "-c", "echo $WORD; sleep 300",
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    match = re.search(r"raysubmit_\w{16}", submitted.stdout + submitted.stderr)
    assert match is not None
    job_id = match.group()

    status = run_command("ray", "job", "status", job_id)
    assert status.returncode == 0
    assert re.search(rf"Status for job '{job_id}': (PENDING|RUNNING)", status.stdout)

    # One that is stopped before it runs has no line of the entrypoint.
    wait_until(lambda: "from-yaml" in client.get_job_logs(job_id).split(), "it runs", 60)
    stopped = run_command("ray", "job", "stop", job_id)
    assert stopped.returncode == 0
    assert f"Job '{job_id}' was stopped" in stopped.stdout + stopped.stderr

    logs = run_command("ray", "job", "logs", job_id)
    assert "Running entrypoint for job" in logs.stdout
    followed = run_command("ray", "job", "logs", "-f", job_id)
    assert followed.returncode == 0

    listed = run_command("ray", "job", "list")
    assert job_id in listed.stdout
    assert "JobDetails(" in listed.stdout

    deleted = run_command("ray", "job", "delete", job_id)
    assert f"Job '{job_id}' deleted successfully" in deleted.stdout
    gone = run_command("ray", "job", "status", job_id)
    assert gone.returncode == 1
    assert f"Job {job_id} does not exist" in gone.stderr


def test_resources(run_command: RunCommand) -> None:
    done = run_command(
        "ray", "job", "submit", "--submission-id=reserves", "--entrypoint-num-gpus=1",
        "--entrypoint-resources", '{"node:__internal_head__": 0.001}', "--",
        "sh", "-c", "echo gpu [$CUDA_VISIBLE_DEVICES]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"gpu \[[01]\]\n", done.stdout)
    # The own API tells what was reserved; the stock one doesn't.
    waiting = run_command(
        "ray", "job", "submit", "--no-wait", "--submission-id=waits",
        "--entrypoint-resources", '{"unobtainium": 2}', "--", "true",
    )  # fmt: skip
    assert waiting.returncode == 0, waiting.stderr
    status = run_command("ray", "job", "status", "waits")
    assert "waiting for resources" in status.stdout + status.stderr
    assert run_command("ray", "job", "stop", "--no-wait", "waits").returncode == 0


def test_label_selector(run_command: RunCommand) -> None:
    done = run_command(
        "ray", "job", "submit", "--no-wait", "--submission-id=labels",
        "--entrypoint-label-selector", '{"ray.io/market-type": "spot"}', "--", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status = run_command("ray", "job", "status", "labels")
    assert "PENDING" in status.stdout
    assert run_command("ray", "job", "stop", "--no-wait", "labels").returncode == 0


def test_list_jobs_of_the_state_api(run_command: RunCommand) -> None:
    run_command("ray-jobs", "submit", "--submission-id=for-state", "--", "true")
    done = run_command("ray", "list", "jobs", "--format=json", "--limit=1000")
    assert done.returncode == 0, done.stderr
    rows = {row["submission_id"]: row for row in json.loads(done.stdout)}
    assert rows["for-state"]["status"] == "SUCCEEDED"
    assert rows["for-state"]["type"] == "SUBMISSION"
