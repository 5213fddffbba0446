"""Logs of jobs whose disk was full at their end: readers are told, after the last byte."""

from __future__ import annotations

import json

import pytest

from ray_jobs.models import CUT_OFF_NOTICE, JobStatus
from ray_jobs.records import JobRecord

from .fakes import Client, Cluster, record

OWN = "/api/ray_jobs/v1/jobs/a/logs"
#: Ends within a character.
LOG = b"all that there was room for\n\xe2\x82"
SHOWN = LOG.decode(errors="replace") + CUT_OFF_NOTICE


def cut_off() -> JobRecord:
    return record("a", status=JobStatus.FAILED, log_may_be_cut_off=True)


@pytest.fixture
def log(cluster: Cluster) -> bytes:
    cluster.append("a", LOG)
    cluster.manager.put(cut_off())
    return LOG


async def test_text(client: Client, log: bytes) -> None:
    async with client.get("/api/jobs/a/logs") as answer:
        assert await answer.json() == {"logs": SHOWN}


async def test_followed_text(client: Client, log: bytes) -> None:
    socket = await client.ws_connect("/api/jobs/a/logs/tail")
    assert "".join([message.data async for message in socket]) == SHOWN


async def test_followed_text_of_a_job_that_ends(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", LOG)
    socket = await client.ws_connect("/api/jobs/a/logs/tail")
    text = (await socket.receive()).data
    cluster.manager.put(cut_off())
    assert text + "".join([message.data async for message in socket]) == SHOWN


@pytest.mark.parametrize("offset", [0, 10, len(LOG), len(LOG) + 10])
async def test_followed_bytes(client: Client, log: bytes, offset: int) -> None:
    """Whoever adds up sizes to take up a stream counts the log's own bytes."""
    socket = await client.ws_connect(f"{OWN}/tail?offset={offset}")
    *data, note = [message.data async for message in socket]
    assert b"".join(data) == LOG[offset:]
    assert json.loads(note) == {"cut_off": True}


async def test_raw_it_is_the_file_itself(client: Client, log: bytes) -> None:
    for headers, shown in (({}, LOG), ({"Range": "bytes=-5"}, LOG[-5:])):
        async with client.get(OWN, headers=headers) as answer:
            assert await answer.read() == shown


async def test_a_new_job_of_the_id_says_nothing(client: Client, cluster: Cluster) -> None:
    cluster.append("a", b"fine\n")
    cluster.manager.put(record("a", status=JobStatus.SUCCEEDED, request_key="another"))
    async with client.get("/api/jobs/a/logs") as answer:
        assert await answer.json() == {"logs": "fine\n"}
    socket = await client.ws_connect(f"{OWN}/tail")
    assert [message.data async for message in socket] == [b"fine\n"]
