"""Fixtures: a real server in a thread, and the command line in this process or in one of its own.

Everything that `ray-jobs` reads from its environment is set here, so that nothing of the machine
that runs the tests gets in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.acceptance.cli.fake_job_server import FakeJobServer

PROJECT = Path(__file__).parents[3]
Invoke = Callable[..., Result]
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("RAY_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def server() -> Iterator[FakeJobServer]:
    with FakeJobServer() as running:
        yield running


@pytest.fixture
def stock_server() -> Iterator[FakeJobServer]:
    with FakeJobServer(stock=True) as running:
        yield running


@pytest.fixture
def invoke(server: FakeJobServer, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in this process, against `server`."""
    from ray_jobs.cli.app import cli

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.url)

    def run(*arguments: str, **kwargs: Any) -> Result:
        return CliRunner().invoke(cli, list(arguments), prog_name="ray-jobs", **kwargs)

    return run


@pytest.fixture
def spawn(server: FakeJobServer) -> Iterator[Spawn]:
    """Start the command in a process of its own, against `server`; whatever is left is killed.

    `before` is code to run first. `sigint` is what the process inherits for Ctrl-C.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(
        *arguments: str,
        env: dict[str, str] | None = None,
        sigint: signal.Handlers = signal.SIG_DFL,
        before: str = "",
        **kwargs: Any,
    ) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nfrom ray_jobs.cli import main; main()", *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs},
            cwd=PROJECT,
            env={**os.environ, "RAY_API_SERVER_ADDRESS": server.url, **(env or {})},
            # A shell that started the tests in the background made them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
