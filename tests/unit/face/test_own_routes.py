"""Our own API: pages, details, waits, raw logs, and errors in JSON."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from ray_jobs.dashboard_module.face import Face
from ray_jobs.dashboard_module.routes import own

from ray_jobs.models import JobStatus

from .fakes import Client, Cluster, record

OWN = "/api/ray_jobs/v1"


async def get(client: Client, path: str, status: int = 200) -> Any:
    async with client.get(OWN + path) as answer:
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        return await answer.json()


async def test_server(client: Client) -> None:
    assert await get(client, "/server") == {
        "version": "0.1.0",
        "ray_version": "2.60.0",
        "session_name": "session_1",
        "max_package_bytes": 20 * 1024 * 1024,
        "api": "v1",
    }


async def test_details(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a", status=JobStatus.PENDING, entrypoint_num_gpus=2))
    shown = await get(client, "/jobs/a")
    assert shown["revision"] == 1
    assert shown["entrypoint_num_gpus"] == 2
    assert shown["pending_reason"] == "waiting for resources (2 GPU)"
    assert list(shown)[:3] == ["type", "job_id", "submission_id"]


@pytest.mark.parametrize("path", ["/jobs/none", "/jobs/none/wait", "/jobs/none/logs"])
async def test_an_unknown_job(client: Client, path: str) -> None:
    assert await get(client, path, 404) == {
        "error": {"code": "job_not_found", "message": "Job none does not exist"}
    }


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "limit=%C2%B2",
        "limit=" + "9" * 5000,
        "status=LOST",
        "type=OTHER",
        "cursor=x",
        "cursor=%00",
        "cursor=W10",
        "cursor=%C3%A9",
    ],
)
async def test_a_malformed_query(client: Client, query: str) -> None:
    shown = await get(client, f"/jobs?{query}", 400)
    assert shown["error"]["code"] == "invalid_request"
    assert query.split("=")[0] in shown["error"]["message"]


async def ids_of_pages(client: Client, query: str) -> list[list[str]]:
    pages = []
    cursor = ""
    while True:
        page = await get(client, f"/jobs?{query}{cursor}")
        pages.append([job["submission_id"] or job["job_id"] for job in page["jobs"]])
        if page["next_cursor"] is None:
            return pages
        cursor = f"&cursor={page['next_cursor']}"


async def test_pages_newest_first_with_drivers_among_them(client: Client, cluster: Cluster) -> None:
    for number in range(5):
        cluster.manager.put(record(f"job{number}", start_time=number * 10))
    cluster.drivers.add("02000000", start_time=25)
    cluster.drivers.add("03000000", start_time=20, is_dead=True)
    pages = await ids_of_pages(client, "limit=3")
    assert pages == [["job4", "job3", "02000000"], ["job2", "03000000", "job1"], ["job0"]]
    assert await ids_of_pages(client, "limit=7") == [[one for page in pages for one in page]]
    assert await ids_of_pages(client, "type=DRIVER") == [["02000000", "03000000"]]
    assert await ids_of_pages(client, "type=submission&limit=4") == [
        ["job4", "job3", "job2", "job1"],
        ["job0"],
    ]


async def test_pages_of_some_statuses(client: Client, cluster: Cluster) -> None:
    for number, status in enumerate(JobStatus):
        cluster.manager.put(record(status.value, start_time=number, status=status))
    cluster.drivers.add("02000000", start_time=9)
    assert await ids_of_pages(client, "status=RUNNING,PENDING&limit=2") == [
        ["02000000", "RUNNING"],
        ["PENDING"],
    ]
    assert await ids_of_pages(client, "status=FAILED&status=STOPPED") == [["FAILED", "STOPPED"]]


async def test_a_page_ends_early_when_it_gets_long(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "MAX_PAGE_BYTES", 20_000)
    for number in range(5):
        cluster.manager.put(
            record(f"job{number}", start_time=number, entrypoint="x" * 9000 * (number % 2 + 1))
        )
    pages = await ids_of_pages(client, "limit=10")
    assert pages == [["job4", "job3"], ["job2", "job1"], ["job0"]]


async def test_a_page_stays_in_place_while_jobs_come(client: Client, cluster: Cluster) -> None:
    for number in range(4):
        cluster.manager.put(record(f"job{number}", start_time=number))
    first = await get(client, "/jobs?limit=2")
    cluster.manager.put(record("newer", start_time=99))
    await get(client, "/jobs/job0/wait?timeout_s=0")
    second = await get(client, f"/jobs?limit=2&cursor={first['next_cursor']}")
    assert [job["submission_id"] for job in second["jobs"]] == ["job1", "job0"]


# --- waiting --------------------------------------------------------------------------------


async def waiting(client: Client, cluster: Cluster, path: str) -> asyncio.Task[Any]:
    """Begin to wait for a job; returns once the server does."""
    await get(client, "/jobs/a")
    task = asyncio.ensure_future(get(client, path))
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    return task


async def test_waiting_for_the_end(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a", status=JobStatus.PENDING))
    task = await waiting(client, cluster, "/jobs/a/wait")
    cluster.manager.put(record("a"))
    cluster.manager.put(record("b"))
    cluster.manager.end("a")
    shown = await asyncio.wait_for(task, 5)
    assert (shown["status"], shown["revision"]) == ("SUCCEEDED", 4)
    assert (await get(client, "/jobs/a/wait"))["status"] == "SUCCEEDED"


async def test_waiting_for_any_change(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a", status=JobStatus.PENDING))
    task = await waiting(client, cluster, "/jobs/a/wait?after_revision=1")
    cluster.manager.put(record("b"))
    cluster.manager.put(record("a"))
    shown = await asyncio.wait_for(task, 5)
    assert (shown["status"], shown["revision"]) == ("RUNNING", 3)
    assert (await get(client, "/jobs/a/wait?after_revision=1"))["revision"] == 3


async def test_a_new_life_of_the_manager_counts_as_a_change(
    client: Client, cluster: Cluster
) -> None:
    cluster.manager.put(record("b"))
    cluster.manager.put(record("b"))
    cluster.manager.put(record("a"))
    task = await waiting(client, cluster, "/jobs/a/wait?after_revision=3")
    cluster.manager.restart()
    assert (await asyncio.wait_for(task, 5))["revision"] == 2


async def test_waiting_ends_at_its_timeout(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    assert (await get(client, "/jobs/a/wait?timeout_s=0"))["status"] == "RUNNING"
    assert (await get(client, "/jobs/a/wait?timeout_s=0.01"))["status"] == "RUNNING"
    for bad in ("-1", "nan", "x", ""):
        await get(client, f"/jobs/a/wait?timeout_s={bad}", 400)
    await get(client, "/jobs/a/wait?after_revision=x", 400)


async def test_waiting_for_a_job_that_is_deleted(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    await get(client, "/jobs/a")
    task = asyncio.ensure_future(get(client, "/jobs/a/wait", 404))
    await asyncio.wait([task], timeout=0.05)
    cluster.manager.remove("a")
    assert (await asyncio.wait_for(task, 5))["error"]["code"] == "job_not_found"


async def test_waiting_for_a_driver_of_its_own(client: Client, cluster: Cluster) -> None:
    cluster.drivers.add("02000000")
    task = asyncio.ensure_future(get(client, "/jobs/02000000/wait"))
    await cluster.drivers.subscribed.wait()
    cluster.drivers.announce(cluster.drivers.add("03000000"))
    cluster.drivers.announce(cluster.drivers.add("02000000", is_dead=True))
    assert (await asyncio.wait_for(task, 5))["status"] == "SUCCEEDED"


async def test_a_shutdown_ends_waits(client: Client, cluster: Cluster, face: Face) -> None:
    cluster.manager.put(record("a"))
    task = await waiting(client, cluster, "/jobs/a/wait?timeout_s=60")
    await face.close()
    assert (await asyncio.wait_for(task, 5))["status"] == "RUNNING"


# --- raw logs -------------------------------------------------------------------------------


async def test_a_raw_log_and_its_ranges(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    async with client.get(OWN + "/jobs/a/logs") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    cluster.append("a", b"01234\xff6789")
    async with client.get(OWN + "/jobs/a/logs") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        assert await answer.read() == b"01234\xff6789"
    async with client.get(OWN + "/jobs/a/logs", headers={"Range": "bytes=4-6"}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == "bytes 4-6/10"
        assert await answer.read() == b"4\xff6"
    async with client.get(OWN + "/jobs/a/logs", headers={"Range": "bytes=50-"}) as answer:
        assert answer.status == 416


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        (None, 0, None),
        ("bytes=0-", 0, None),
        ("bytes=1-20000000", 1, 20_000_001),
        ("bytes=9000000-99999999999", 9_000_000, None),
        ("bytes=-7", -7, None),
        ("bytes=-99999999999", 0, None),
    ],
)
async def test_a_long_raw_log(
    client: Client, cluster: Cluster, asked: str | None, start: int, stop: int | None
) -> None:
    cluster.manager.put(record("a"))
    content = b"".join(b"%07d\n" % number for number in range(3_000_000))
    cluster.append("a", content)
    headers = {"Range": asked} if asked else {}
    async with client.get(OWN + "/jobs/a/logs", headers=headers) as answer:
        assert answer.status == (206 if asked else 200)
        assert await answer.read() == content[start:stop]
    async with client.head(OWN + "/jobs/a/logs", headers=headers) as answer:
        assert answer.headers["Content-Length"] == str(len(content[start:stop]))
        assert await answer.read() == b""


async def test_a_long_raw_log_that_only_the_disk_has(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    content = os.urandom(1_000_000) * 20
    cluster.append("a", content)
    fd = os.open(cluster.log("a"), os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    async with client.get(OWN + "/jobs/a/logs") as answer:
        assert await answer.read() == content


@pytest.mark.parametrize("asked", ["bytes=5-4", "bytes=10-", "bytes=x-y", "lines=1-2"])
async def test_a_range_that_is_not_there(client: Client, cluster: Cluster, asked: str) -> None:
    cluster.manager.put(record("a"))
    cluster.append("a", b"0123456789")
    async with client.get(OWN + "/jobs/a/logs", headers={"Range": asked}) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == "bytes */10"


async def test_a_driver_has_no_log(client: Client, cluster: Cluster) -> None:
    cluster.drivers.add("02000000")
    shown = await get(client, "/jobs/02000000/logs", 400)
    assert shown["error"] == {
        "code": "not_a_submission",
        "message": "Can only get logs of submission type jobs",
    }


async def test_an_id_that_is_a_path_reads_nothing(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("../../secret"))
    (cluster.log_dir.parent / "secret.log").write_bytes(b"secret")
    (cluster.log_dir / "job-driver-..").mkdir()
    for path in (OWN + "/jobs/..%2F..%2Fsecret/logs", "/api/jobs/..%2F..%2Fsecret/logs"):
        async with client.get(path) as answer:
            assert answer.status in (200, 404)
            assert b"secret" not in (await answer.read()).replace(b"../../secret", b"")
