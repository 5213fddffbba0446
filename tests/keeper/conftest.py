"""A real zygote, with a process that stands in for the raylet."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs import keeper
from ray_jobs.keeper.sockets import ORPHANS_SUFFIX
from tests.faults.processes import processes, zygotes
from tests.waiting import wait_for_line, wait_until

TIMEOUT_S = 10.0


class KeeperClient:
    """What a supervisor does, in blocking calls."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT_S)
        self.connection = connection
        self._lines = connection.makefile("rb")

    def read(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "the keeper went away"
        message: dict[str, Any] = json.loads(line)
        return message

    def at_end(self) -> bool:
        return self._lines.readline() == b""

    def send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._lines.close()
        self.connection.close()


class Node:
    """A folder with a zygote, as on a node of a cluster."""

    def __init__(self, folder: Path, raylet: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.raylet = raylet
        self.log = folder / "job.log"
        self._clients: list[KeeperClient] = []

    def start_zygote(self, env: dict[str, str] | None = None, command: Sequence[str] = ()) -> None:
        """Start a zygote, by a command that runs the rest of its arguments if there is one."""
        source = keeper.zygote_source()
        arguments = [str(self.folder), "zygote", str(self.raylet.pid)]
        subprocess.run(
            [*command, sys.executable, "-I", "-S", "-c", source, *arguments],
            check=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )

    def wait_for_log(self, line: str) -> None:
        wait_for_line(self.log, line)

    def connect(self, path: Path) -> KeeperClient:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        client = KeeperClient(connection)
        self._clients.append(client)
        return client

    def spawn(self, command: str, **changes: Any) -> tuple[KeeperClient, dict[str, Any]]:
        """Order an attempt. Returns the connection and the keeper's first answer."""
        client = self.connect(self.folder / "zygote")
        attempt = changes.pop("attempt", None) or uuid.uuid4().hex
        order = {
            "attempt": attempt,
            "directory": str(self.folder / attempt),
            "argv": ["/bin/sh", "-c", command],
            "env": {"PATH": os.environ["PATH"]},
            "cwd": str(self.folder),
            "log_path": str(self.log),
            "log_header": "",
            "niceness": 0,
            **changes,
        }
        client.send(**order)
        return client, client.read()

    def wait_for_orphans(self) -> None:
        """Return once the zygote says that nothing is left of dead keepers."""
        client = self.connect(self.folder / ("zygote" + ORPHANS_SUFFIX))
        assert client.connection.recv(1), "the zygote went away"

    def zygote(self) -> int:
        """Return its pid."""
        [pid] = zygotes(str(self.folder))
        return pid

    def adopt(self, attempt: str) -> tuple[KeeperClient, dict[str, Any]]:
        client = self.connect(self.folder / attempt / keeper.CONTROL_SOCKET)
        return client, client.read()

    def status(self, attempt: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / attempt / keeper.STATUS_FILE).read_text())
        return found

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.raylet.kill()
        self.raylet.wait()


@contextlib.contextmanager
def running_node(
    folder: Path, env: dict[str, str] | None = None, command: Sequence[str] = ()
) -> Iterator[Node]:
    """Run a zygote. See `Node.start_zygote`."""
    raylet = subprocess.Popen(["sleep", "300"])
    node = Node(folder, raylet)
    try:
        node.start_zygote(env, command)
        yield node
    finally:
        node.close()


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("n")) as node:
        yield node


def processes_in(folder: Path) -> list[str]:
    """Return the processes whose working directory is a folder: of the jobs that work there."""
    found = []
    for entry in processes():
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == folder:
                found.append(f"{entry.name}: {(entry / 'cmdline').read_bytes()!r}")
    return found


# --- supervisors, which import Ray ----------------------------------------------------------------


@pytest.fixture
def session_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The session's folder of a node with a process that stands in for its raylet."""
    import ray

    from ray_jobs.supervisor import actor, node

    folder = tmp_path_factory.mktemp("n")
    (folder / "logs").mkdir()
    monkeypatch.setattr(node, "session_dir", lambda: str(folder))
    monkeypatch.setattr(actor, "logs_dir", lambda: str(folder / "logs"))
    # Asking the real one would start a cluster.
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    with subprocess.Popen(["sleep", "300"]) as raylet:
        monkeypatch.setenv("RAY_RAYLET_PID", str(raylet.pid))
        yield folder
        raylet.kill()
    wait_until(lambda: not zygotes(str(folder)), "its zygotes are gone")


def supervisor_order(attempt: str, entrypoint: str) -> dict[str, Any]:
    """Return a manager's order to run an attempt."""
    return {
        "attempt": attempt,
        "entrypoint": entrypoint,
        "log_name": f"{attempt}.log",
        "log_header": "",
        "fresh_log": False,
        "max_log_bytes": None,
        "stop_requested": False,
        "command_prefix": [],
        "env_vars": {},
        "env": {},
        "default_env": {},
        "drop_env": [],
        "keeps_omp_num_threads": True,
        "num_cpus": 0,
        "stop_env": {},
    }
