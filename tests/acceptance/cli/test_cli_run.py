"""`ray-jobs run`, with stand-ins for Ray and the gateway: real processes that can be misbehaved.

The real ones are tested in tests/acceptance.
"""

from __future__ import annotations

import http.server
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs.cli import local_cluster
from ray_jobs.cli.local_cluster import Child, LocalCluster, LocalClusterError, answers
from tests.acceptance.cli.conftest import PROJECT, Invoke
from tests.acceptance.cli.fake_job_server import FakeJobServer

FAKE_RAY = """#!{python}
import os, signal, subprocess, sys
folder = [word for word in sys.argv if word.startswith("--temp-dir=")][0].split("=")[1]
with open({pids!r}, "a") as file:
    child = subprocess.Popen(["sleep", "600"])  # a part of the cluster that nobody ends
    print(os.getpid(), child.pid, file=file)
print("starting", sys.argv[1:3])
{before}
with open(folder + "/ray_current_cluster", "w") as file:
    file.write("127.0.0.1:6379")
print("started", flush=True)
signal.pause()
"""

FAKE_GATEWAY = """
import os, signal, sys
with open({pids!r}, "a") as file:
    print(os.getpid(), file=file)
print("warming up")
print("ray-jobs gateway listening on {url}", flush=True)
signal.pause()
"""


class Stage:
    """The stand-ins, and which processes they were."""

    def __init__(self, folder: Path, url: str) -> None:
        self.ray = folder / "ray"
        self.gateway = folder / "gateway.py"
        self.pids = folder / "pids"
        self.gateway.write_text(FAKE_GATEWAY.format(pids=str(self.pids), url=url))
        self.write_ray()

    def write_ray(self, before: str = "") -> None:
        """Write the stand-in for `ray`, with code that runs before it is ready."""
        code = FAKE_RAY.format(python=sys.executable, pids=str(self.pids), before=before)
        self.ray.write_text(code)
        self.ray.chmod(0o755)

    def left_over(self) -> list[int]:
        """Return the processes that were started and still are."""
        return [pid for pid in map(int, self.pids.read_text().split()) if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def stage(
    server: FakeJobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    stage = Stage(tmp_path, server.url)
    monkeypatch.setattr(local_cluster, "ray_executable", lambda: str(stage.ray))
    monkeypatch.setattr(
        local_cluster, "gateway_command", lambda _address: [sys.executable, str(stage.gateway)]
    )
    monkeypatch.setattr(local_cluster, "answers", lambda _url: False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    yield stage
    if stage.pids.exists():
        for pid in stage.left_over():
            os.kill(pid, signal.SIGKILL)


def test_it_starts_a_cluster_and_stops_it(
    server: FakeJobServer, invoke: Invoke, stage: Stage, tmp_path: Path
) -> None:
    server.will_end("FAILED", 3, log=b"out\n")
    result = invoke("run", "--address", "local", "--", "python", "x.py")
    assert (result.exit_code, result.stdout) == (3, "out\n"), result.output
    assert len(stage.pids.read_text().split()) == 3
    assert stage.left_over() == []
    assert not list(tmp_path.glob("rj-*"))


def test_it_uses_the_cluster_that_is_named(
    server: FakeJobServer, invoke: Invoke, stage: Stage
) -> None:
    server.will_end(log=b"out\n")
    result = invoke("run", "--", "true")
    assert (result.exit_code, result.stdout) == (0, "out\n")
    assert f"Using the cluster at {server.url}" in result.stderr
    assert not stage.pids.exists()


def test_a_cluster_that_does_not_start_is_explained(invoke: Invoke, stage: Stage) -> None:
    stage.write_ray("print('no room'); sys.exit(1)")
    result = invoke("run", "--address", "local", "--", "true")
    assert result.exit_code == 1
    assert "Error: `ray start` ended before it was ready" in result.stderr
    assert "ray-start.log" in result.stderr
    assert "no room" in result.stderr
    assert stage.left_over() == []


def test_a_cluster_that_takes_too_long_is_stopped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time for the stand-in to have started its own child: there is something to stop.
    monkeypatch.setattr(local_cluster, "START_TIMEOUT_S", 1.0)
    stage.write_ray("sys.stdout.flush(); signal.pause()")
    with pytest.raises(LocalClusterError, match="was not ready in 1 s"), LocalCluster():
        pytest.fail("it is not ready")
    assert stage.left_over() == []


def test_no_ray_says_what_to_install(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    result = invoke("run", "--address", "local", "--", "true")
    assert result.exit_code == 1
    assert 'pip install ".[server]"' in result.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_leave_nothing_behind(
    server: FakeJobServer, stage: Stage, number: int, code: int
) -> None:
    server.will_run(b"line\n")
    program = (
        "import ray_jobs.cli.local_cluster as lc, sys\n"
        f"lc.ray_executable = lambda: {str(stage.ray)!r}\n"
        f"lc.gateway_command = lambda _: [sys.executable, {str(stage.gateway)!r}]\n"
        "from ray_jobs.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", "--address", "local", "--", "x"],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    server.wait_for("tailing")
    watched = [os.pidfd_open(int(pid)) for pid in _leaders(stage)]
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == code, stderr.decode()
    for descriptor in watched:
        # Readable when the process has ended.
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)


def _leaders(stage: Stage) -> list[str]:
    return [line.split()[0] for line in stage.pids.read_text().splitlines()]


def test_a_child_that_ignores_sigterm_is_killed_with_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster, "STOP_TIMEOUT_S", 0.1)
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True)\n"
    code += "while True: signal.pause()"
    child = Child("stubborn", [sys.executable, "-c", code], dict(os.environ), tmp_path / "log")
    assert child.wait_until_ready(lambda line: line.strip() or None, 10) == "ready"
    child.stop()
    assert child._process.returncode == -signal.SIGKILL


@pytest.fixture
def http_server() -> Iterator[Callable[[int, bytes], str]]:
    """Answer every request in one way."""
    started: list[http.server.HTTPServer] = []

    def start(status: int, body: bytes) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        started.append(running)
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{running.server_port}"

    yield start
    for running in started:
        running.shutdown()
        running.server_close()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"ray_version": "2.60.0"}', True),
        (401, b"token?", True),
        (200, b"<html>", False),
        (200, b"[]", False),
        (200, b"7", False),
        (404, b'{"ray_version": 1}', False),
    ],
)
def test_what_counts_as_a_cluster(
    http_server: Callable[[int, bytes], str], status: int, body: bytes, expected: bool
) -> None:
    assert answers(http_server(status, body)) is expected


def test_nobody_there_is_no_cluster() -> None:
    assert not answers("http://127.0.0.1:1")
