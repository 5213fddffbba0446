"""The real face and its guard over a cluster in memory, as a server in a process of its own.

`python -m tests.fuzz.server FOLDER` prints its URL, and serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp.web
from ray_jobs.dashboard_module.connections import (
    TLS_HANDSHAKE_TIMEOUT_S,
    Connections,
    log_malformed_requests_briefly,
)
from ray_jobs.dashboard_module.face import MAX_UPLOADS
from ray_jobs.dashboard_module.gateway import tls_context, token_check
from ray_jobs.dashboard_module.guard import Guard, GuardSettings
from ray_jobs.dashboard_module.guard import guard as guard_module
from ray_jobs.dashboard_module.guard.clients import addresses, networks
from ray_jobs.dashboard_module.guard.limits import share_of
from ray_jobs.dashboard_module.routes import definitions

from ray_jobs import _ray
from ray_jobs.models import JobStatus
from tests.unit.face.fakes import Cluster, record

READY_WORDS = "serving on "
STOP_TIMEOUT_S = 20.0
AUDIT = "audit.jsonl"
#: The server's token, where it demands one.
TOKEN = "the-token-of-the-fuzzed-server-0123456789"
#: Jobs that are there from the start, and a driver.
RUNNING, DONE, PENDING, DRIVER = "running", "done", "pending é", "01000000"


class Server:
    """A server that runs."""

    def __init__(self, url: str, pid: int, folder: pathlib.Path) -> None:
        self.url = url
        self.pid = pid
        #: The jobs' logs, and what the server itself has said.
        self.folder = folder
        self._read_to = 0

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def append(self, job_id: str, data: bytes) -> None:
        with open(self.folder / f"job-driver-{job_id}.log", "ab") as file:
            file.write(data)

    def said(self) -> str:
        """Return what the server has logged since the last call."""
        with (self.folder / "server.out").open(errors="replace") as file:
            file.seek(self._read_to)
            text = file.read()
            self._read_to = file.tell()
        return text

    def audit(self) -> list[dict[str, Any]]:
        """Return the lines of the audit so far, those of refusals too."""
        texts = (path.read_text() for path in self.folder.glob(AUDIT.replace(".", "*.")))
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def rss_bytes(self) -> int:
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def open_files(self) -> int:
        return len(list(pathlib.Path(f"/proc/{self.pid}/fd").iterdir()))


@contextlib.contextmanager
def running_server(
    folder: pathlib.Path, *arguments: str, demands_token: bool = False
) -> Iterator[Server]:
    """Serve until the end of the context. `arguments` are those of the command line below."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with (folder / "server.out").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, **(token if demands_token else {"RAY_AUTH_MODE": "disabled"})},
        )
    assert process.stdout is not None
    with process.stdout as output:
        try:
            line = output.readline()
            assert line.startswith(READY_WORDS), (folder / "server.out").read_text()
            yield Server(line.removeprefix(READY_WORDS).strip(), process.pid, folder)
        finally:
            process.terminate()
            assert process.wait(STOP_TIMEOUT_S) == 0


def add_jobs(cluster: Cluster) -> None:
    cluster.manager.put(record(RUNNING))
    cluster.manager.put(record(DONE))
    cluster.manager.end(DONE)
    cluster.manager.put(record(PENDING, status=JobStatus.PENDING))
    cluster.drivers.add(DRIVER)
    cluster.append(RUNNING, b"so far\n")
    cluster.append(DONE, "all of it: é\xff\n".encode("latin-1") * 1000)


async def serve(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.folder)
    add_jobs(cluster)
    guard = make_guard(arguments)
    settings = guard.settings
    face = cluster.face(
        client=lambda request: addresses(request, settings.trusted_proxies)[0],
        upload_share=share_of(MAX_UPLOADS, settings.max_client_share),
    )
    app = aiohttp.web.Application(middlewares=[token_check(guard)])
    app.add_routes(definitions(face, guard.guarded))
    log_malformed_requests_briefly()
    connections = Connections(arguments.head_timeout_s, arguments.handshake_timeout_s)
    connections.guard(app)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    tls = tls_context(arguments.tls_cert, arguments.tls_key)
    server = await connections.listen(runner, listener, tls=tls)
    sweeping = asyncio.ensure_future(connections.sweep(runner))
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    scheme = "https" if tls else "http"
    print(f"{READY_WORDS}{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await end.wait()
    server.close()
    sweeping.cancel()
    await face.close()
    await runner.cleanup()
    await guard.close()


def make_guard(arguments: argparse.Namespace) -> Guard:
    """Return a guard with everything on. All clients come through a trusted proxy, or none."""
    guard_module.WRITE_STALL_S = arguments.write_stall_s
    proxies, _ = networks(["127.0.0.1"])
    return Guard(
        GuardSettings(
            allowed_hosts=("a",),
            trusted_proxies=tuple(proxies),
            max_requests=arguments.max_requests,
            audit_path=str(arguments.folder / AUDIT),
        ),
        server="gateway",
        listening="127.0.0.1",
        demands_token=_ray.is_token_auth_enabled,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--files", type=int, help="how many files it may open")
    parser.add_argument("--head-timeout-s", type=float, default=30.0)
    parser.add_argument("--handshake-timeout-s", type=float, default=TLS_HANDSHAKE_TIMEOUT_S)
    parser.add_argument("--write-stall-s", type=float, default=guard_module.WRITE_STALL_S)
    parser.add_argument("--max-requests", type=int, default=2000)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    if arguments.files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.files, arguments.files))
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
