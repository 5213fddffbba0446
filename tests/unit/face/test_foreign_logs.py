"""Logs of Ray's own jobs on other nodes: whole and followed, by both APIs."""

from __future__ import annotations

import asyncio

import pytest
from ray_jobs.dashboard_module.face import Face
from ray_jobs.dashboard_module.foreign_logs import LogUnavailable

from .fakes import Client, Cluster, record
from .test_log_routes import logs_of
from .test_tails import OWN, STOCK, begin

TEXT = "two words, \u00e9\U0001f600 and more\n"


@pytest.fixture
def elsewhere(cluster: Cluster) -> Cluster:
    cluster.manager.put(record("a", foreign=True))
    cluster.logs.append("a", TEXT.encode() + b"\xff")
    # Ray's server writes its own lines to the head, where they say nothing of the job.
    cluster.append("a", b"Runtime env is setting up.\n")
    return cluster


async def test_whole(client: Client, elsewhere: Cluster) -> None:
    assert await logs_of(client, "a") == TEXT + "\ufffd"
    async with client.get("/api/ray_jobs/v1/jobs/a/logs") as answer:
        assert await answer.read() == TEXT.encode() + b"\xff"


@pytest.mark.parametrize("path", [STOCK, OWN, OWN + "?offset=7"])
async def test_followed(client: Client, elsewhere: Cluster, path: str) -> None:
    tail = await begin(client, path)
    await tail.until(lambda data: b"more" in data)
    elsewhere.logs.append("a", b"then\n")
    await tail.until(lambda data: data.endswith(b"then\n"))
    elsewhere.logs.append("a", b"end\n")
    elsewhere.manager.end("a")
    assert await tail.to_the_end() == 1000
    wanted = TEXT.encode() + b"\xffthen\nend\n"
    if path == STOCK:
        wanted = wanted.replace(b"\xff", "\ufffd".encode())
    assert tail.data == wanted[7 if "offset" in path else 0 :]


async def test_followed_when_it_has_ended(client: Client, elsewhere: Cluster) -> None:
    elsewhere.manager.end("a")
    tail = await begin(client, OWN)
    assert await tail.to_the_end() == 1000
    assert tail.data == TEXT.encode() + b"\xff"


async def test_shutdown(client: Client, elsewhere: Cluster, face: Face) -> None:
    tail = await begin(client, STOCK)
    await tail.until(lambda data: b"more" in data)
    await asyncio.gather(face.close(), tail.to_the_end())
    assert tail.socket.close_code == 1001


@pytest.mark.parametrize("path", ["/api/jobs/a/logs", STOCK, "/api/ray_jobs/v1/jobs/a/logs", OWN])
async def test_a_log_that_cannot_be_fetched(client: Client, elsewhere: Cluster, path: str) -> None:
    elsewhere.logs.failure = LogUnavailable("its node is gone")
    async with client.get(path) as answer:
        assert answer.status == 404
        assert "its node is gone" in await answer.text()
