"""Following a log, as text by the compatible face and as bytes by our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
import msgspec
import pytest
from aiohttp import WSCloseCode, WSMsgType
from ray_jobs.dashboard_module import tailing
from ray_jobs.dashboard_module.face import Face
from ray_jobs.dashboard_module.log_reader import MAX_FRAME_BYTES

from ray_jobs.growth import Growth
from ray_jobs.log_files import SHELF
from ray_jobs.models import JobStatus

from .fakes import Client, Cluster, record

STOCK = "/api/jobs/a/logs/tail"
OWN = "/api/ray_jobs/v1/jobs/a/logs/tail"
LIMIT_S = 5


class Tail:
    """What has come of a log."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.frames: list[str | bytes] = []

    @property
    def data(self) -> bytes:
        return b"".join(
            frame.encode() if isinstance(frame, str) else frame for frame in self.frames
        )

    async def receive(self) -> bool:
        """Take one frame. Returns False at the end."""
        message = await asyncio.wait_for(self.socket.receive(), LIMIT_S)
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return False
        self.frames.append(message.data)
        return True

    async def until(self, is_done: Callable[[bytes], bool]) -> None:
        while not is_done(self.data):
            assert await self.receive(), "the tail has ended"

    async def to_the_end(self) -> int | None:
        """Take all that comes. Returns the close code."""
        while await self.receive():
            continue
        return self.socket.close_code


async def begin(client: Client, path: str) -> Tail:
    return Tail(await client.ws_connect(path))


@pytest.mark.parametrize("path", [STOCK, OWN])
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_log_that_leaves_before_all_was_read(
    client: Client, cluster: Cluster, path: str, is_replaced: bool
) -> None:
    """With its job, into the archive: who reads slowly must not take that for the log's end."""
    cluster.manager.put(record("a"))
    cluster.append("a", b"first\n")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"first\n")
    with cluster.log("a").open("rb") as kept:  # so that its number is nobody else's
        cluster.log("a").unlink()
        if is_replaced:
            cluster.append("a", b"of another job, and longer\n")
        cluster.manager.remove("a")
        assert await tail.to_the_end() == WSCloseCode.OK
        assert kept.read() == b"first\n"
    assert tail.data == b"first\n" + tailing.LOG_HAS_LEFT


@pytest.mark.parametrize("path", [STOCK, OWN])
async def test_a_log_that_leaves_when_all_was_read(
    client: Client, cluster: Cluster, path: str
) -> None:
    cluster.append("a", b"all of it\n")
    cluster.manager.put(record("a", status=JobStatus.SUCCEEDED))
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"all of it\n")
    cluster.log("a").unlink()
    assert await tail.to_the_end() == WSCloseCode.OK
    assert tail.data == b"all of it\n"


@pytest.mark.parametrize("path", [STOCK, OWN])
async def test_a_log_that_was_moved_away_is_followed_to_its_end(
    client: Client, cluster: Cluster, path: str
) -> None:
    """The manager moves logs of jobs that ended long ago. A slow client may still be at one."""
    cluster.manager.put(record("a"))
    cluster.append("a", b"first\n")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"first\n")
    cluster.append("a", b"last\n")
    shelf = cluster.log_dir / SHELF
    shelf.mkdir()
    cluster.log("a").rename(shelf / cluster.log("a").name)
    cluster.manager.put(record("a", status=JobStatus.SUCCEEDED))
    assert await tail.to_the_end() == WSCloseCode.OK
    assert tail.data == b"first\nlast\n"
    async with client.get("/api/jobs/a/logs") as answer:
        assert await answer.json() == {"logs": "first\nlast\n"}
    async with client.get("/api/ray_jobs/v1/jobs/a/logs") as answer:
        assert await answer.read() == b"first\nlast\n"


@pytest.fixture(params=[STOCK, OWN])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_log_is_followed_while_it_grows(
    client: Client, cluster: Cluster, path: str
) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"one\n")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"one\n")
    cluster.append("a", b"two\n")
    await tail.until(lambda data: data == b"one\ntwo\n")
    cluster.append("a", b"three\n")
    cluster.manager.end("a")
    assert await tail.to_the_end() == 1000
    assert tail.data == b"one\ntwo\nthree\n"
    assert {type(frame) for frame in tail.frames} == {str if path == STOCK else bytes}


async def test_a_log_that_comes_into_being(client: Client, cluster: Cluster, path: str) -> None:
    cluster.manager.put(record("a", status=JobStatus.PENDING))
    tail = await begin(client, path)
    cluster.append("a", b"begin\n")
    await tail.until(lambda data: data == b"begin\n")
    cluster.manager.end("a")
    assert await tail.to_the_end() == 1000


async def test_a_finished_log(client: Client, cluster: Cluster, path: str) -> None:
    cluster.manager.put(record("a", status=JobStatus.FAILED))
    cluster.append("a", b"all of it")
    tail = await begin(client, path)
    assert await tail.to_the_end() == 1000
    assert tail.data == b"all of it"


async def test_a_job_that_ends_without_a_log(client: Client, cluster: Cluster, path: str) -> None:
    cluster.manager.put(record("a", status=JobStatus.PENDING))
    tail = await begin(client, path)
    cluster.manager.end("a", JobStatus.STOPPED)
    assert await tail.to_the_end() == 1000
    assert tail.frames == []


async def test_a_job_that_is_deleted(client: Client, cluster: Cluster, path: str) -> None:
    cluster.manager.put(record("a", status=JobStatus.PENDING))
    tail = await begin(client, path)
    cluster.manager.remove("a")
    assert await tail.to_the_end() == 1000


async def test_an_id_that_is_given_to_another_job(
    client: Client, cluster: Cluster, path: str
) -> None:
    cluster.manager.put(record("a", request_key="one", attempt="one"))
    tail = await begin(client, path)
    cluster.manager.put(record("a", request_key="two", attempt="two"))
    assert await tail.to_the_end() == 1000


async def test_an_attempt_that_never_started(client: Client, cluster: Cluster, path: str) -> None:
    """Its supervisor was killed just then: the job gets another one, and its log goes on."""
    cluster.manager.put(record("a", request_key="one", attempt="one"))
    cluster.append("a", b"first\n")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"first\n")
    again = record("a", request_key="one", attempt="two", status=JobStatus.PENDING)
    cluster.manager.put(again)
    cluster.append("a", b"second\n")
    await tail.until(lambda data: data == b"first\nsecond\n")
    cluster.append("a", b"last\n")
    cluster.manager.put(msgspec.structs.replace(again, status=JobStatus.SUCCEEDED))
    assert await tail.to_the_end() == 1000
    assert tail.data == b"first\nsecond\nlast\n"


async def test_frames_are_bounded_and_whole(client: Client, cluster: Cluster, path: str) -> None:
    cluster.manager.put(record("a", status=JobStatus.SUCCEEDED))
    data = b"x" + "é\U0001f600".encode() * 60_000 + b"\xff" * 70_000 + b"\xf0\x9f"
    cluster.append("a", data)
    tail = await begin(client, path)
    assert await tail.to_the_end() == 1000
    sizes = [len(f.encode()) if isinstance(f, str) else len(f) for f in tail.frames]
    assert max(sizes) <= MAX_FRAME_BYTES
    wanted = data if path == OWN else data.decode("utf-8", "replace").encode()
    assert tail.data == wanted


async def test_a_character_that_comes_in_two_writes(client: Client, cluster: Cluster) -> None:
    whole = "ab\U0001f600".encode()
    cluster.manager.put(record("a"))
    cluster.append("a", whole[:4])
    tail = await begin(client, STOCK)
    await tail.until(lambda data: data == b"ab")
    cluster.append("a", whole[4:] + b"\xff!\xe2\x82")
    await tail.until(lambda data: data == "ab\U0001f600\ufffd!".encode())
    cluster.manager.end("a")
    assert await tail.to_the_end() == 1000
    assert tail.data.decode() == "ab\U0001f600\ufffd!\ufffd"


async def test_taking_up_at_an_offset(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"0123\xff5")
    tail = await begin(client, OWN + "?offset=4")
    await tail.until(lambda data: data == b"\xff5")
    beyond = await begin(client, OWN + "?offset=8")
    cluster.append("a", b"6789")
    await beyond.until(lambda data: data == b"89")
    cluster.manager.end("a")
    assert await tail.to_the_end() == await beyond.to_the_end() == 1000
    for offset in (999, 2**63 - 2, 2**63 - 1):
        late = await begin(client, f"{OWN}?offset={offset}")
        assert await late.to_the_end() == 1000
        assert late.frames == []


@pytest.mark.parametrize("offset", ["-1", "x", "1.5", "9" * 30])
async def test_a_malformed_offset(client: Client, cluster: Cluster, offset: str) -> None:
    cluster.manager.put(record("a"))
    async with client.get(f"{OWN}?offset={offset}") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "invalid_request"


async def test_a_request_that_is_no_websocket(client: Client, cluster: Cluster, path: str) -> None:
    cluster.manager.put(record("a"))
    async with client.get(path) as answer:
        assert answer.status == 400
        assert "Traceback" not in await answer.text()


async def test_lines_of_a_busy_job_go_out_together(
    client: Client, cluster: Cluster, path: str
) -> None:
    cluster.manager.put(record("a"))
    tail = await begin(client, path)
    lines = [b"line %d\n" % number for number in range(5000)]

    def write() -> None:
        for line in lines:
            cluster.append("a", line)

    await asyncio.gather(
        asyncio.to_thread(write), tail.until(lambda data: data.endswith(lines[-1]))
    )
    cluster.manager.end("a")
    assert await tail.to_the_end() == 1000
    assert tail.data == b"".join(lines)
    assert len(tail.frames) < len(lines) / 5


async def test_a_slow_client_holds_up_nobody_and_loses_nothing(
    client: Client, cluster: Cluster, path: str
) -> None:
    line = b"0123456789abcdef" * 64 + b"\n"
    data = line * 16_000
    cluster.manager.put(record("a"))
    cluster.append("a", data)
    slow, fast = await begin(client, path), await begin(client, path)
    while sum(map(len, fast.frames)) < len(data):
        assert await fast.receive()
    async with client.get("/api/jobs/a") as answer:
        assert answer.status == 200
    cluster.append("a", b"end")
    cluster.manager.end("a")
    assert await fast.to_the_end() == 1000
    assert slow.frames == []
    assert await slow.to_the_end() == 1000
    assert fast.data == slow.data == data + b"end"


async def test_a_client_that_leaves_ends_its_tail(
    client: Client, cluster: Cluster, face: Face, path: str
) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"one")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"one")
    assert face._follower.replica.is_watched
    await tail.socket.send_str("anything")
    await tail.socket.close()
    while face._follower.replica.is_watched:
        async with client.get("/api/version") as answer:
            assert answer.status == 200
    async with client.get("/api/jobs/a") as answer:
        assert answer.status == 200


async def test_a_shutdown_says_so_to_its_tails(
    client: Client, cluster: Cluster, face: Face, path: str
) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"one")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"one")
    closing = asyncio.ensure_future(face.close())
    assert await tail.to_the_end() == 1001
    await closing


async def test_a_tail_goes_on_while_the_manager_restarts(
    client: Client, cluster: Cluster, path: str
) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"one")
    tail = await begin(client, path)
    await tail.until(lambda data: data == b"one")
    cluster.manager.reachable = False
    cluster.manager.wake()
    cluster.append("a", b"two")
    await tail.until(lambda data: data == b"onetwo")
    cluster.manager.restart()
    cluster.manager.reachable = True
    cluster.append("a", b"three")
    cluster.manager.end("a")
    assert await tail.to_the_end() == 1000
    assert tail.data == b"onetwothree"


async def test_a_quiet_tail_is_kept_alive_by_pings(
    client: Client, cluster: Cluster, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailing, "PING_INTERVAL_S", 0.01)
    cluster.manager.put(record("a"))
    socket = await client.ws_connect(path, autoping=False)
    for _ in range(2):  # and it doesn't matter that nobody answers
        message = await asyncio.wait_for(socket.receive(), LIMIT_S)
        assert message.type is WSMsgType.PING
    await socket.close()


async def test_without_inotify(
    client: Client, cluster: Cluster, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Growth, "_open", lambda _: False)
    cluster.manager.put(record("a"))
    tail = await begin(client, path)
    cluster.append("a", b"one")
    await tail.until(lambda data: data == b"one")
    cluster.manager.end("a")
    assert await tail.to_the_end() == 1000
