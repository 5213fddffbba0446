"""Clients that stall, vanish, or are too many: the server stays, and so does its memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from ray_jobs.dashboard_module.open_files import RESERVED_FILES

from tests.archives import MIB, zip_of_size
from tests.fuzz.conftest import check_health
from tests.fuzz.raw import request
from tests.fuzz.server import RUNNING, Server, running_server
from tests.fuzz.tails import begin_many
from tests.waiting import wait_until

TAIL = f"/api/jobs/{RUNNING}/logs/tail"
OWN_TAIL = f"/api/ray_jobs/v1/jobs/{RUNNING}/logs/tail"
SERVER_INFO = "/api/ray_jobs/v1/server"
PACKAGE = "/api/packages/gcs/halfway.zip"
CERTIFICATES = Path(__file__).parents[1] / "unit" / "client" / "certificates"
#: Of the server with few files.
FEW_FILES = 600
#: Bytes that a tail may cost while it waits. Measured: 20 to 25 KiB.
MAX_BYTES_PER_TAIL = 40 * 1024


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 20.0)


def held(server: Server, connections: list[socket.socket]) -> int:
    """Return how many of some connections the server has accepted and not closed."""
    ports = {connection.getsockname()[1] for connection in connections}
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        its_port, port = (int(each.rpartition(":")[2], 16) for each in (local, remote))
        count += its_port == server.port and port in ports and inode != "0"
    return count


def temporary_files(server: Server) -> int:
    """Return how many deleted files the server has open: uploads on their way."""
    count = 0
    for link in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(link.readlink()).endswith("(deleted)")
    return count


def test_uploads_that_stop_halfway(server: Server) -> None:
    data = zip_of_size(2 * MIB)
    head = f"PUT {PACKAGE} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    files, before = server.open_files(), server.rss_bytes()
    chance = random.Random(4)
    for _ in range(10):
        for _ in range(40):
            with connect(server) as connection:
                connection.sendall(head + data[: chance.randrange(len(data))])
        wait_until(lambda: server.open_files() <= files + 2, "the connections' end")
    # Of the last ones, two may have been open still.
    wait_until(lambda: temporary_files(server) == 0, "the uploads' end")
    assert requests.get(server.url + PACKAGE, timeout=20).status_code == 404
    # Measured: 20 MiB; 130, were that what has come is kept until the garbage is collected.
    assert server.rss_bytes() - before < 80 * MIB
    assert requests.put(server.url + PACKAGE, data=data, timeout=20).status_code == 200


def test_an_upload_in_chunks_that_stops_halfway(server: Server) -> None:
    head = b"PUT /api/packages/gcs/c.zip HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"", b"5\r\nhel", b"100000\r\n" + b"x" * 70_000, b"5\r\nhello\r\n"):
        with connect(server) as connection:
            connection.sendall(head + rest)
    wait_until(lambda: temporary_files(server) == 0, "the uploads' end")
    assert requests.get(f"{server.url}/api/packages/gcs/c.zip", timeout=20).status_code == 404


def test_slow_heads(server: Server) -> None:
    """Connections that never get to a request end; others don't notice them."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(400)]
        for connection in slow[:300]:
            connection.sendall(b"GET /api/jobs/ HTTP/1.1\r\nHost: a\r\nX-A: ")
        check_health(server)  # by connections that are accepted after those

        def are_ended() -> bool:
            for connection in slow[:300]:
                with contextlib.suppress(OSError):
                    connection.send(b"x")
            return held(server, slow) == 0

        wait_until(are_ended, "the end of the slow ones", 20)


def test_slow_bodies_hold_up_nobody(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for n in range(200):
            connection = stack.enter_context(connect(server))
            method, path = [("POST", "/api/jobs/"), ("PUT", f"/api/packages/gcs/{n}.zip")][n % 2]
            head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
            connection.sendall(head.encode() + b"{")
        for _ in range(20):
            answer = request(
                server.port, "POST", "/api/jobs/", body=b'{"entrypoint": "true", "metadata": null}'
            )
            assert answer.status == 200
        # A hundred uploads stall, which are more than there may be at once.
        other = {"X-Forwarded-For": "10.0.0.9"}
        answer = request(server.port, "PUT", PACKAGE, other, zip_of_size(1000))
        assert answer.status == 200


def test_one_client_keeps_nobody_out(tmp_path: Path) -> None:
    """It has its share, and is refused the rest; nothing else is."""
    with (
        running_server(tmp_path, "--max-requests", "20") as server,
        contextlib.ExitStack() as stack,
    ):
        head = "POST /api/jobs/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{"
        for _ in range(15):
            stack.enter_context(connect(server)).sendall(head.encode())
        wait_until(lambda: request(server.port, "GET", SERVER_INFO).status == 429, "a refusal")
        for _ in range(10):
            other = {"X-Forwarded-For": "10.0.0.9"}
            assert request(server.port, "GET", SERVER_INFO, other).status == 200


def test_clients_that_read_nothing_are_dropped(tmp_path: Path) -> None:
    """They hold all places, each of an address of its own; who reads slowly keeps its own."""
    arguments = ("--max-requests", "20", "--write-stall-s", "4")
    with running_server(tmp_path, *arguments) as server, contextlib.ExitStack() as stack:
        server.append(RUNNING, b"x" * 32 * MIB)
        paths = [f"/api/jobs/{RUNNING}/logs", f"/api/ray_jobs/v1/jobs/{RUNNING}/logs"]

        def ask(number: int) -> socket.socket:
            connection = stack.enter_context(socket.socket())
            connection.settimeout(20.0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.connect(("127.0.0.1", server.port))
            head = f"GET {paths[number % 2]} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            connection.sendall(f"{head}X-Forwarded-For: 10.0.1.{number}\r\n\r\n".encode())
            return connection

        slow = [ask(number) for number in range(2)]
        stalled = [ask(number) for number in range(2, 20)]
        wait_until(lambda: request(server.port, "GET", SERVER_INFO).status == 429, "a refusal")
        begun = time.monotonic()
        received = [0, 0]
        while held(server, stalled):
            assert time.monotonic() - begun < 20.0
            for number, connection in enumerate(slow):
                received[number] += len(connection.recv(256 * 1024))
            time.sleep(0.05)
        assert request(server.port, "GET", SERVER_INFO).status == 200
        for number, connection in enumerate(slow):
            while piece := connection.recv(MIB):
                received[number] += len(piece)
        assert min(received) > 32 * MIB
        for connection in stalled:
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(MIB):
                    got += len(piece)
            assert got < 32 * MIB  # what was on its way
        assert "Traceback" not in server.said()


def test_clients_that_never_read(server: Server) -> None:
    """A list of megabytes to a hundred clients that read nothing of it."""
    before = server.rss_bytes()
    server.append(RUNNING, b"x" * 8 * MIB)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(connect(server))
            connection.sendall(f"GET /api/jobs/{RUNNING}/logs HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        check_health(server)
        assert server.rss_bytes() - before < 300 * MIB


async def test_the_limit_of_open_files(tmp_path: Path) -> None:
    """Tails are refused first, then everything, always by a 503; then all goes on."""
    with running_server(tmp_path, "--files", str(FEW_FILES), "--head-timeout-s", "1") as server:
        files = server.open_files()
        tails = await begin_many(server.port, [TAIL, OWN_TAIL] * 200)
        statuses = [await tail.status() for tail in tails]
        assert set(statuses) == {101, 503}
        assert 200 < statuses.count(101) < FEW_FILES - RESERVED_FILES
        refused = tails[statuses.index(503)]
        assert "Retry-After: 5" in refused.answer.result()
        assert b"as many connections as it may have now" in refused.received
        # Short requests go on.
        await asyncio.to_thread(check_health, server)

        # Silent connections, up to the limit and beyond.
        silent = []
        for _ in range(FEW_FILES):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", server.port))
            silent.append(connection)
        answer = await asyncio.to_thread(request, server.port, "GET", "/api/version")
        assert answer.status in (200, 503), answer
        for connection in silent:
            connection.close()
        for tail in tails:
            tail.close()
        await until(lambda: server.open_files() <= files + 4)
        again = await begin_many(server.port, [TAIL] * 50)
        assert {await tail.status() for tail in again} == {101}
        for tail in again:
            tail.close()
        await asyncio.to_thread(check_health, server)


async def until(condition: Callable[[], bool]) -> None:
    """As `wait_until`, while the event loop of the test goes on."""
    await asyncio.to_thread(wait_until, condition, "what was to come", 60.0)


async def idle_tails(server: Server, number: int) -> None:
    job_ids = [f"idle{n}" for n in range(10)]
    for job_id in job_ids:
        body = {"entrypoint": "true", "submission_id": job_id}
        answer = await asyncio.to_thread(
            requests.post, f"{server.url}/api/jobs/", json=body, timeout=20
        )
        assert answer.status_code == 200
    warm = await begin_many(server.port, [TAIL] * 20)
    for tail in warm:
        tail.close()
    before, files = server.rss_bytes(), server.open_files()
    # Half of the logs are there, half are still to come.
    for job_id in job_ids[:5]:
        server.append(job_id, b"first\n")
    paths = [f"/api/jobs/{job_ids[n % 10]}/logs/tail" for n in range(number)]
    tails = await begin_many(server.port, paths)
    assert {await tail.status() for tail in tails} == {101}
    assert server.open_files() - files <= number + 10
    used = server.rss_bytes() - before
    print(f"{number} idle tails: {used / number:.0f} bytes each")
    assert used < number * MAX_BYTES_PER_TAIL
    await asyncio.to_thread(check_health, server)
    # Not one of them misses a line.
    for job_id in job_ids:
        server.append(job_id, b"last\n")
    await until(lambda: all(tail.received.endswith(b"last\n") for tail in tails))
    for tail in tails:
        tail.close()
    await until(lambda: server.open_files() <= files + 2)


async def test_idle_tails(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        await idle_tails(server, 1000)
        await asyncio.to_thread(check_health, server)


@pytest.mark.long
async def test_ten_thousand_idle_tails(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        await idle_tails(server, 10_000)
        await asyncio.to_thread(check_health, server)


def test_silent_connections_to_tls(tmp_path: Path) -> None:
    """They end, though they are no connections before they have shaken hands."""
    cert, key = (str(CERTIFICATES / f"server.{end}") for end in ("pem", "key"))
    arguments = ("--tls-cert", cert, "--tls-key", key, "--handshake-timeout-s", "1")
    with running_server(tmp_path, *arguments) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(200)]
        # By a connection that is accepted after those.
        answer = requests.get(f"{server.url}/api/version", timeout=20, verify=cert)
        assert answer.status_code == 200
        wait_until(lambda: held(server, silent) == 0, "their end", 10.0)
