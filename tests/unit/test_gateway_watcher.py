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

#: It tells each client its pid and the address of its cluster, and obeys no SIGTERM if `deaf`.
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
address = handed.options["address"]
handed.tell_ready(handed.options["raylet"], "10.0.0.1:6379" if address == "auto" else address)
while True:
    connection, _ = listener.accept()
    connection.sendall((str(os.getpid()) + " " + address).encode())
    connection.close()
"""
WATCHING = """
import sys
from ray_jobs.cli import watcher
watcher.COMMAND_LINE = {serving!r}
{before}
options = dict(address="auto", host="127.0.0.1", tls_cert=None, raylet={raylet}, mode={mode!r})
code = watcher.watch("127.0.0.1", 0, options)
assert not sys.modules.keys() & set(["ray", "aiohttp", "asyncio"])
sys.exit(code)
"""

#: No process can be started the second and the third time.
REFUSING = """
import subprocess
popen, attempts = subprocess.Popen, []
def refusing(*args, **options):
    attempts.append(args)
    if len(attempts) in (2, 3):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return popen(*args, **options)
subprocess.Popen = refusing
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(
        mode: str = "", raylet: int = 0, before: str = "", stderr: int | None = None
    ) -> subprocess.Popen[str]:
        program = WATCHING.format(serving=SERVING, raylet=raylet, mode=mode, before=before)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=stderr, text=True
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
    return int(answer(port)[0])


def answer(port: int) -> list[str]:
    """Return the pid of who serves, and the address that it was told."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        return connection.recv(100).decode().split()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not runs(pid), "it is dead", 5)


def test_one_that_dies_is_started_anew_and_nobody_is_refused(start: Start) -> None:
    port = port_of(start())
    pids = [who_serves(port)]
    for _ in range(3):
        kill(pids[-1])
        pids.append(who_serves(port))
    assert len(set(pids)) == 4


def test_those_that_come_later_serve_the_same_cluster(start: Start) -> None:
    port = port_of(start())
    pid, address = answer(port)
    assert address == "auto"
    for _ in range(2):
        kill(int(pid))
        pid, address = answer(port)
        assert address == "10.0.0.1:6379"


def test_what_the_system_refuses_for_a_while_is_tried_again(start: Start) -> None:
    watcher = start(before=REFUSING, stderr=subprocess.PIPE)
    port = port_of(watcher)
    kill(who_serves(port))
    who_serves(port)
    watcher.terminate()
    _, told = watcher.communicate(timeout=10)
    assert watcher.returncode == 0
    assert told.count("can't be started: [Errno 11]") == 2


def test_a_watcher_whose_words_cannot_be_written_goes_on(start: Start) -> None:
    with open("/dev/full", "w") as full:
        watcher = start(stderr=full.fileno())
    port = port_of(watcher)
    assert watcher.stdout is not None
    kill(who_serves(port))
    kill(who_serves(port))
    who_serves(port)
    watcher.terminate()
    assert watcher.wait(10) == 0


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
    with subprocess.Popen(["sleep", "30"]) as raylet:
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
