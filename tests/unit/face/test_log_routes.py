"""The stock log route: any bytes, any size, as JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray_jobs.dashboard_module import log_reader

from ray_jobs.models import JobStatus

from .fakes import Client, Cluster, record


async def logs_of(client: Client, submission_id: str) -> str:
    async with client.get(f"/api/jobs/{submission_id}/logs") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        body = json.loads(await answer.read())
    assert list(body) == ["logs"]
    return str(body["logs"])


async def test_a_log_that_is_not_there_yet(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    assert await logs_of(client, "a") == ""
    cluster.append("a", b"")
    assert await logs_of(client, "a") == ""


@pytest.mark.parametrize(
    "data",
    [
        b"plain\nlines\n",
        bytes(range(256)),
        'quotes " backslash \\ \x00 \x1f \x7f \u2028 é \U0001f600'.encode(),
        b"cut off \xf0\x9f\x98",
        b"\xed\xa0\x80 surrogate",
    ],
)
async def test_any_bytes(client: Client, cluster: Cluster, data: bytes) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", data)
    assert await logs_of(client, "a") == data.decode("utf-8", "replace")


@pytest.mark.parametrize("cut", range(5))
async def test_characters_across_chunks(client: Client, cluster: Cluster, cut: int) -> None:
    size = log_reader.JSON_CHUNK_BYTES
    data = b"x" * (size - cut) + "\U0001f600\xe9".encode() + b"\xf0\x9f" + b"y" * size + b"\xf0"
    cluster.manager.put(record("a"))
    cluster.append("a", data)
    assert await logs_of(client, "a") == data.decode("utf-8", "replace")


async def test_a_log_of_many_chunks(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    line = "é" * 50 + "\n"
    cluster.append("a", line.encode() * 60_000)
    assert await logs_of(client, "a") == line * 60_000


async def test_a_log_that_shrinks_is_no_endless_answer(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"x" * (8 * log_reader.JSON_CHUNK_BYTES))
    async with client.get("/api/jobs/a/logs") as answer:
        os.truncate(cluster.log("a"), 10)
        body = json.loads(await answer.read())
    assert set(body["logs"]) == {"x"}


async def test_a_log_that_cannot_be_read(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    cluster.log("a").mkdir()
    async with client.get("/api/jobs/a/logs") as answer:
        assert answer.status in (200, 500)
        assert "Traceback" not in await answer.text()
    async with client.get("/api/jobs/a") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EAGAIN])
async def test_a_log_that_is_not_in_the_page_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Then it is read by a thread, whether the file system can tell or not."""

    def refuse(*_: object) -> int:
        raise OSError(number, "not from memory")

    monkeypatch.setattr(os, "preadv", refuse)
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    with (
        ThreadPoolExecutor(1) as threads,
        contextlib.closing(log_reader.LogFile(str(path), threads)) as log,
    ):
        assert await log.read(2, 4) == (0, b"2345")
        assert await log.read(8, 4) == (0, b"89")
        assert await log.read(10, 4) == (0, b"")


@pytest.mark.parametrize("path", ["/api/jobs/a/logs", "/api/ray_jobs/v1/jobs/a/logs"])
async def test_a_log_that_is_gone_is_no_empty_log(
    client: Client, cluster: Cluster, path: str
) -> None:
    """As after a start of the head on another disk, which has the records from the KV."""
    cluster.manager.put(record("a", status=JobStatus.SUCCEEDED, driver_node_id="former"))
    for each in (path, f"{path}/tail"):
        async with client.get(each) as answer:
            assert answer.status == 404
            assert "log of job a isn't on the head node" in await answer.text()
    cluster.append("a", b"there")
    async with client.get(path) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
async def test_a_job_that_never_ran_has_an_empty_log(
    client: Client, cluster: Cluster, status: JobStatus
) -> None:
    cluster.manager.put(record("a", status=status))
    assert await logs_of(client, "a") == ""
