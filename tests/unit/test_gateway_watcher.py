"""The gateway's watcher, with a process that serves in the place of the gateway."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ray_jobs.cli.watcher import bound
from ray_jobs.errors import RayJobsError
from ray_jobs.handover import runs
from tests.waiting import wait_until

#: It tells each client its pid, and obeys no SIGTERM if `deaf`.
SERVING = """
import os, signal, sys
from ray_jobs.handover import Handover
handed = Handover.decoded(sys.argv[-1])
handed.die_with_watcher()
mode = handed.options["mode"]
if mode == "fails":
    sys.exit(7)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
[listener] = handed.sockets()
listener.listen(8)
handed.tell_ready(handed.options["raylet"])
while True:
    connection, _ = listener.accept()
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""
WATCHING = """
import sys
from ray_jobs.cli import watcher
watcher._PROGRAM = {serving!r}
options = dict(host="127.0.0.1", tls_cert=None, raylet={raylet}, mode={mode!r})
code = watcher.watch("127.0.0.1", 0, options)
assert not sys.modules.keys() & set(["ray", "aiohttp", "asyncio"])
sys.exit(code)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(mode: str = "", raylet: int = 0) -> subprocess.Popen[str]:
        program = WATCHING.format(serving=SERVING, raylet=raylet, mode=mode)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def port_of(watcher: subprocess.Popen[str]) -> int:
    assert watcher.stdout is not None
    return int(watcher.stdout.readline().rpartition(":")[2])


def who_serves(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        return int(connection.recv(100))


def test_one_that_dies_is_started_anew_and_nobody_is_refused(start: Start) -> None:
    port = port_of(start())
    pids = [who_serves(port)]
    for _ in range(3):
        os.kill(pids[-1], signal.SIGKILL)
        wait_until(lambda: not runs(pids[-1]), "it is dead", 5)
        pids.append(who_serves(port))
    assert len(set(pids)) == 4


def test_one_that_cannot_start_is_not_started_again(start: Start) -> None:
    assert start("fails").wait(20) == 7


def test_both_end_when_told(start: Start) -> None:
    watcher = start()
    serving = who_serves(port_of(watcher))
    watcher.terminate()
    assert watcher.wait(10) == 0
    assert not runs(serving)


def test_a_killed_watcher_takes_the_other_with_it(start: Start) -> None:
    watcher = start()
    serving = who_serves(port_of(watcher))
    watcher.kill()
    wait_until(lambda: not runs(serving), "it is gone", 2)


def test_both_end_with_the_raylet(start: Start) -> None:
    with subprocess.Popen(["sleep", "1000"]) as raylet:
        watcher = start("deaf", raylet.pid)
        serving = who_serves(port_of(watcher))
        raylet.kill()  # nobody looks at its exit status yet
        assert watcher.wait(5) == 0
        assert not runs(serving)


def test_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RayJobsError, match=f"Can't listen on 127.0.0.1:{port}"):
            bound("127.0.0.1", port)


def test_a_name_of_two_addresses_has_one_port() -> None:
    listeners = bound("localhost", 0)
    assert len({each.getsockname()[1] for each in listeners}) == 1
    for each in listeners:
        each.close()
