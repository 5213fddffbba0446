"""A new user's first hour: install without ray, submit with files, follow, stop, list, delete."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.clusters import readme
from tests.waiting import wait_until

PROJECT = Path(__file__).parents[2]
QUICKSTART = PROJECT / "examples" / "quickstart"
INSTALL_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=True), running_cluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a virtual environment that has the client and nothing of ray."""
    folder = tmp_path_factory.mktemp("client")
    source = folder / "source"
    shutil.copytree(
        PROJECT, source, ignore=shutil.ignore_patterns(".venv", ".git", "*.egg-info", ".*_cache")
    )
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(source)],
        check=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    missing = subprocess.run([python, "-c", "import ray"], capture_output=True, text=True)
    assert "No module named 'ray'" in missing.stderr
    return python.parent


def test_first_hour_of_the_command_line(
    cluster: Cluster, without_ray: Path, tmp_path: Path
) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_ADDRESS": cluster.address}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(without_ray / "ray-jobs"), *words]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )

    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "script.py").write_text("print('from my folder')\n")

    followed = run("submit", "--working-dir", str(tmp_path / "work"), "--", "python", "script.py")
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.endswith("from my folder\n")

    failed = run("submit", "--", "sh", "-c", "exit 7")
    assert failed.returncode == 7

    background = run("submit", "--no-wait", "--submission-id=mine", "--", "sleep", "300")
    assert background.stdout == "mine\n"
    wait_until(lambda: "RUNNING" in run("status", "mine").stdout, "it runs", 30)

    assert "mine" in run("list", "--status", "RUNNING").stdout
    listed = json.loads(run("list", "--format", "json").stdout)
    assert listed[0]["submission_id"] == "mine"

    refused = run("delete", "mine")
    assert refused.returncode == 1
    assert "is in a non-terminal state" in refused.stderr
    assert run("stop", "mine").returncode == 0
    assert "STOPPED" in run("status", "mine").stdout
    assert run("wait", "mine").returncode == 1
    assert "Running entrypoint for job mine: sleep 300" in run("logs", "-f", "mine").stdout
    assert run("delete", "mine").returncode == 0
    gone = run("status", "mine")
    assert gone.returncode == 1
    assert "Error: Job mine does not exist" in gone.stderr
    assert "Traceback" not in gone.stderr
    version = run("version")
    assert version.returncode == 0


def run_as_printed(command: list[str], cluster: Cluster, home: Path) -> str:
    """Run an example of the README where it is to be run, and return what it printed."""
    env = {
        "PATH": f"{BIN}:/usr/bin:/bin",
        "HOME": str(home),
        "RAY_AUTH_MODE": "disabled",
        # The README's cluster is where nothing needs to be said.
        "RAY_API_SERVER_ADDRESS": cluster.address,
    }
    done = subprocess.run(
        command, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_hour_as_the_readme_prints_it(cluster: Cluster, tmp_path: Path) -> None:
    done_by_fixtures = {'pip install ".[server]"', "ray-jobs plugin enable", "ray start --head"}
    script = readme.script("The first hour", cluster.address, done_by_fixtures)
    # Nobody is there for the Ctrl-C: the reader of its output goes away instead.
    followed = "ray-jobs logs -f $ID        # Ctrl-C ends the following, not the job\n"
    assert script.count(followed) == 1
    script = script.replace(followed, "ray-jobs logs -f $ID | grep -m1 -x 6\n")
    printed = run_as_printed(["bash", "-euc", script], cluster, tmp_path)
    in_order = [
        f"server: ray-jobs {importlib.metadata.version('ray-jobs')} at {cluster.address}",
        "1\n2\n3\n4\n5\nrequests 2.31.0\n",
        "Entrypoint:  sh -c 'python script.py;",
        "\n6\n",
        " stopped.\n",
        "\tSTOPPED\t",
        " deleted.\n",
        "Job 'first-hour' submitted successfully",
        "Job 'first-hour' succeeded",
        "submission_id='first-hour'",
        "Job 'first-hour' deleted successfully",
    ]
    place = 0
    for words in in_order:
        place = printed.find(words, place)
        assert place >= 0, f"{words!r} is missing, or in the wrong place:\n{printed}"


def test_sdk_and_rest_as_the_readme_prints_them(cluster: Cluster, tmp_path: Path) -> None:
    (code,) = readme.blocks("SDK", "python")
    code = code.replace(readme.PRINTED_ADDRESS, cluster.address)
    printed = run_as_printed([str(BIN / "python"), "-c", code], cluster, tmp_path)
    assert printed.endswith("1\n2\n3\n4\n5\nrequests 2.31.0\n")
    script = readme.script("REST", cluster.address, without=set())
    printed = run_as_printed(["bash", "-euc", script], cluster, tmp_path)
    assert '"status":"SUCCEEDED"' in printed.replace(" ", "")
    assert "hello\\n" in printed
    assert '"deleted":true' in printed.replace(" ", "")


def test_sdk_without_ray(cluster: Cluster, without_ray: Path) -> None:
    code = """
import asyncio, sys
from ray_jobs import AsyncJobSubmissionClient, JobStatus, JobSubmissionClient
with JobSubmissionClient(sys.argv[1]) as client:
    job_id = client.submit_job(entrypoint="echo sync")
    assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
    assert client.get_job_logs(job_id).endswith("sync\\n")
async def main():
    async with AsyncJobSubmissionClient(sys.argv[1]) as client:
        job_id = await client.submit_job(entrypoint="echo async")
        assert "".join([part async for part in client.tail_job_logs(job_id)]).endswith("async\\n")
asyncio.run(main())
assert "ray" not in sys.modules
"""
    command = [str(without_ray / "python"), "-W", "error", "-c", code, cluster.address]
    env = {"PATH": "/usr/bin:/bin", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_own_clients_against_rays_own_server(without_ray: Path, tmp_path: Path) -> None:
    with plugin(enabled=False), running_cluster(cpus=1) as stock:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_ADDRESS": stock.address}
        (tmp_path / "a.py").write_text("print('stock ran it')")

        def run(*words: str) -> Any:
            command = [str(without_ray / "ray-jobs"), *words]
            return subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
            )

        done = run("submit", "--working-dir", str(tmp_path), "--", "python", "a.py")
        assert done.returncode == 0, done.stderr
        assert "stock ran it" in done.stdout
        assert "SUCCEEDED" in run("list", "--status=SUCCEEDED", "--limit=1").stdout


def test_run_starts_and_stops_a_cluster_of_its_own(tmp_path: Path) -> None:
    before = pids_of_ray()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [
            str(BIN / "ray-jobs"),
            "run",
            "--address=local",
            f"--working-dir={QUICKSTART}",
            '--runtime-env-json={"pip": ["requests==2.31.0"]}',
            "--",
            "python",
            "script.py",
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1\n2\n3\n4\n5\nrequests 2.31.0\n")
    wait_until(lambda: pids_of_ray() <= before, "its processes are gone", 10)


def pids_of_ray() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if any(word in words for word in (b"raylet", b"gcs_server", b"ray_jobs", b"zygote-")):
                found.add(int(entry.name))
    return found


CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=15000",
    "--dump-dom",
]


def test_jobs_page_of_rays_dashboard(cluster: Cluster, tmp_path: Path) -> None:
    with JobSubmissionClient(cluster.address) as client:
        job_id = client.submit_job(entrypoint="echo shown on the page", submission_id="on-the-page")
        client.wait_until_finish(job_id, timeout=60)
    chromium = shutil.which("chromium")
    assert chromium, "Debian's package `chromium` is needed"
    done = subprocess.run(
        [chromium, *CHROMIUM, f"--user-data-dir={tmp_path}", f"{cluster.address}/#/jobs"],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert "on-the-page" in done.stdout
    assert "echo shown on the page" in done.stdout
    assert "SUCCEEDED" in done.stdout
