"""The real face over a cluster in memory, as a server in a process of its own.

`python -m tests.fuzz.server FOLDER` prints its URL, and serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import pathlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import aiohttp.web
from ray_jobs.dashboard_module.connections import Connections, log_malformed_requests_briefly
from ray_jobs.dashboard_module.routes import definitions

from ray_jobs.models import JobStatus
from tests.unit.face.fakes import Cluster, record

READY_WORDS = "serving on "
STOP_TIMEOUT_S = 20.0
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

    def rss_bytes(self) -> int:
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def open_files(self) -> int:
        return len(list(pathlib.Path(f"/proc/{self.pid}/fd").iterdir()))


@contextlib.contextmanager
def running_server(folder: pathlib.Path, *arguments: str) -> Iterator[Server]:
    """Serve until the end of the context. `arguments` are those of the command line below."""
    with (folder / "server.out").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.server", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
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
    face = cluster.face()
    app = aiohttp.web.Application()
    app.add_routes(definitions(face))
    log_malformed_requests_briefly()
    connections = Connections(arguments.head_timeout_s)
    connections.guard(app)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await connections.listen(runner, listener)
    sweeping = asyncio.ensure_future(connections.sweep(runner))
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    print(f"{READY_WORDS}http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await end.wait()
    server.close()
    sweeping.cancel()
    await face.close()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--files", type=int, help="how many files it may open")
    parser.add_argument("--head-timeout-s", type=float, default=30.0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    if arguments.files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.files, arguments.files))
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
