"""Logs whose middle was dropped, by every route that shows logs."""

from __future__ import annotations

import json

import pytest

from ray_jobs.log_holes import HEAD_BYTES, dropped, trim
from ray_jobs.models import JobStatus, gap_notice

from .fakes import Client, Cluster, record

MAX_BYTES = 1024 * 1024
CONTENT = b"".join(b"%015d\n" % number for number in range(4 * MAX_BYTES // 16))
OWN = "/api/ray_jobs/v1/jobs/a/logs"


@pytest.fixture
def tail_start(cluster: Cluster) -> int:
    """Have a log with a hole. Returns where what was kept begins again."""
    cluster.manager.put(record("a", status=JobStatus.SUCCEEDED, max_log_bytes=MAX_BYTES))
    cluster.append("a", CONTENT)
    trim(str(cluster.log("a")), MAX_BYTES)
    with cluster.log("a").open("rb") as file:
        return HEAD_BYTES + dropped(file.fileno(), HEAD_BYTES)


@pytest.fixture
def shown(tail_start: int) -> bytes:
    notice = gap_notice(tail_start - HEAD_BYTES).encode()
    return CONTENT[:HEAD_BYTES] + notice + CONTENT[tail_start:]


async def test_text(client: Client, shown: bytes) -> None:
    async with client.get("/api/jobs/a/logs") as answer:
        assert (await answer.json())["logs"].encode() == shown


async def test_followed_text(client: Client, shown: bytes) -> None:
    socket = await client.ws_connect("/api/jobs/a/logs/tail")
    assert "".join([message.data async for message in socket]).encode() == shown


async def test_followed_bytes(client: Client, tail_start: int) -> None:
    socket = await client.ws_connect(OWN + "/tail?offset=1000")
    frames = [message.data async for message in socket]
    [gap] = [frame for frame in frames if isinstance(frame, str)]
    assert json.loads(gap) == {"dropped": tail_start - HEAD_BYTES}
    at = frames.index(gap)
    assert b"".join(frames[:at]) == CONTENT[1000:HEAD_BYTES]
    assert b"".join(frames[at + 1 :]) == CONTENT[tail_start:]


async def test_raw(client: Client, shown: bytes) -> None:
    async with client.get(OWN) as answer:
        assert (answer.status, await answer.read()) == (200, shown)


async def test_ranges(client: Client, tail_start: int) -> None:
    size = len(CONTENT)
    for asked, start, stop in (
        ("0-9", 0, 10),
        ("100-", 100, HEAD_BYTES),
        (f"{HEAD_BYTES}-", tail_start, size),
        (f"70000-{tail_start + 9}", tail_start, tail_start + 10),
        ("-100", size - 100, size),
        (f"-{size}", 0, HEAD_BYTES),
    ):
        async with client.get(OWN, headers={"Range": f"bytes={asked}"}) as answer:
            assert answer.status == 206, asked
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
            assert await answer.read() == CONTENT[start:stop]


@pytest.mark.parametrize("asked", ["70000-80000", f"{len(CONTENT)}-", "5-4"])
async def test_a_range_of_which_nothing_is_kept(
    client: Client, tail_start: int, asked: str
) -> None:
    async with client.get(OWN, headers={"Range": f"bytes={asked}"}) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


async def test_a_log_within_its_bound(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("b", status=JobStatus.SUCCEEDED, max_log_bytes=MAX_BYTES))
    cluster.append("b", b"short\n")
    async with client.get("/api/jobs/b/logs") as answer:
        assert await answer.json() == {"logs": "short\n"}
    async with client.get("/api/ray_jobs/v1/jobs/b/logs") as answer:
        assert await answer.read() == b"short\n"
