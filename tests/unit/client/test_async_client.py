from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ray_jobs import errors
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.transport import PLAIN_REQUESTS
from ray_jobs.models import JobDetails, JobInfo, JobStatus
from tests.unit.client.job_server import JobServer, job


async def test_creating_a_client_asks_nothing(server: JobServer) -> None:
    client = AsyncJobSubmissionClient(server.url)
    assert client.address == client.get_address() == server.url
    await client.close()
    await client.close()
    assert server.requests == []


async def test_a_plain_submission_is_one_request(server: JobServer) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        submission_id = await client.submit_job(entrypoint="true")
    assert server.requests == [("POST", "/api/jobs/")]
    assert server.submissions == [
        {
            "entrypoint": "true",
            "submission_id": submission_id,
            "runtime_env": {},
            "metadata": {},
        }
    ]
    assert submission_id.startswith("raysubmit_")
    assert len(submission_id) == len("raysubmit_") + 16


async def test_all_arguments(server: JobServer) -> None:
    async with AsyncJobSubmissionClient(server.url, metadata={"a": "1", "b": "1"}) as client:
        submission_id = await client.submit_job(
            entrypoint="echo 'ä'\n",
            job_id="mine",
            metadata={"b": "2"},
            runtime_env={"pip": ["x"]},
            entrypoint_num_cpus=1,
            entrypoint_num_gpus=0.5,
            entrypoint_memory=100,
            entrypoint_resources={"c": 1},
            entrypoint_label_selector={"d": "e"},
        )
    assert submission_id == "mine"
    assert server.submissions == [
        {
            "entrypoint": "echo 'ä'\n",
            "submission_id": "mine",
            "metadata": {"a": "1", "b": "2"},
            "runtime_env": {"pip": {"packages": ["x"], "pip_check": False}},
            "entrypoint_num_cpus": 1,
            "entrypoint_num_gpus": 0.5,
            "entrypoint_memory": 100,
            "entrypoint_resources": {"c": 1},
            "entrypoint_label_selector": {"d": "e"},
        }
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"entrypoint": ""},
        {"entrypoint": ["true"]},
        {"submission_id": 1},
        {"submission_id": "a", "job_id": "b"},
        {"metadata": {"a": 1}},
        {"metadata": "a"},
        {"entrypoint_num_cpus": "1"},
        {"entrypoint_num_gpus": -1},
        {"entrypoint_num_cpus": True},
        {"entrypoint_memory": 1.5},
        {"entrypoint_resources": {"a": "b"}},
        {"entrypoint_resources": {1: 1}},
        {"entrypoint_resources": [1]},
        {"entrypoint_resources": {"CPU": 1}},
        {"entrypoint_num_cpus": float("nan")},
        {"entrypoint_label_selector": "a=b"},
        {"entrypoint_label_selector": {"a": 1}},
        {"runtime_env": [1]},
        {"runtime_env": {"container": {"x": object()}}},
        {"runtime_env": {"container": {"x": threading.Lock()}}},
        {"runtime_env": {"env_vars": {"A": "\udcff"}}},
        {"runtime_env": {"image_uri": "\udcff"}},
        {"runtime_env": {"env_vars": {"A=B": "1"}}},
        {"entrypoint": "echo \udcff"},
        {"entrypoint": "a\0b"},
        {"entrypoint": "x" * 200_000},
        {"submission_id": "a\udcff"},
        {"submission_id": "a/b"},
        {"submission_id": "x" * 241},
        {"metadata": {"a": "\ud800"}},
        {"metadata": {"\udcff": "a"}},
        {"metadata": {"a": "x" * 200_000}},
    ],
)
async def test_malformed_submissions_are_not_sent(server: JobServer, wrong: Any) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest):
            await client.submit_job(**{"entrypoint": "true", **wrong})
    assert server.requests == []


async def test_nothing_is_uploaded_for_a_malformed_submission(
    server: JobServer, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("x")
    environment = {"working_dir": tmp_path, "env_vars": {"A": "x" * 140_000}}
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest, match="131,071"):
            await client.submit_job(entrypoint="true", runtime_env=environment)
        with pytest.raises(errors.InvalidRequest, match=r"entrypoint.*UTF-8"):
            await client.submit_job(entrypoint="\udcff", runtime_env={"working_dir": tmp_path})
    assert server.requests == []


@pytest.mark.parametrize("submission_id", ["x" * 240, "a\nb", "é"])
async def test_what_only_a_server_can_judge_is_sent(server: JobServer, submission_id: str) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.submit_job(
            entrypoint="true", submission_id=submission_id, metadata={"a": "\0"}
        )
    assert server.submissions[0]["submission_id"] == submission_id


async def test_a_directory_whose_name_is_not_utf8(server: JobServer, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()
    (odd / "a").write_text("x")
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.submit_job(entrypoint="true", runtime_env={"working_dir": str(odd)})
    assert server.submissions[0]["runtime_env"]["working_dir"].startswith("gcs://")


async def test_the_id_is_told_just_before_it_is_sent(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    told: list[tuple[str, int]] = []
    async with AsyncJobSubmissionClient(server.url) as client:
        submission_id = await client.submit_job(
            entrypoint="true",
            runtime_env={"working_dir": tmp_path},
            on_sending=lambda sent: told.append((sent, len(server.packages))),
        )
    assert told == [(submission_id, 1)]


async def test_an_id_that_is_not_utf8_names_no_job(server: JobServer) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest, match=r"a\\udcff"):
            await client.get_job_info("a\udcff")
    assert server.requests == []


async def test_duplicate(server: JobServer) -> None:
    server.jobs["a"] = job("a")
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.DuplicateSubmissionId):
            await client.submit_job(entrypoint="true", submission_id="a")


async def drop(request: web.Request) -> web.Response:
    """Read a request, and cut the connection."""
    await request.read()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_lost_answer_of_a_submission_that_arrived(server: JobServer) -> None:
    async def take_and_drop(request: web.Request) -> web.Response:
        submission_id = (await request.json())["submission_id"]
        server.jobs[submission_id] = job(submission_id)
        return await drop(request)

    server.overrides["POST", "/api/jobs/"] = take_and_drop
    async with AsyncJobSubmissionClient(server.url) as client:
        submission_id = await client.submit_job(entrypoint="true")
    assert list(server.jobs) == [submission_id]
    assert server.paths("POST") == ["/api/jobs/"]


@pytest.mark.parametrize("given", [None, "mine"])
async def test_lost_answer_of_a_submission_that_may_have_arrived(
    server: JobServer, given: str | None
) -> None:
    server.overrides["POST", "/api/jobs/"] = drop
    server.jobs["mine"] = job("mine")  # whose?
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.ServerUnreachable) as caught:
            await client.submit_job(entrypoint="true", submission_id=given)
    assert (given or "raysubmit_") in (caught.value.hint or "")
    assert server.paths("POST") == ["/api/jobs/"]


@pytest.mark.parametrize("job_id", ["a/b", "a b", "ä?#", "..", "%2F"])
async def test_ids_are_encoded(server: JobServer, job_id: str) -> None:
    async with AsyncJobSubmissionClient(server.url + "/prefix") as client:
        with pytest.raises(errors.UnexpectedResponse):
            await client.get_job_info(job_id)
    from urllib.parse import unquote

    (path,) = server.paths("GET")
    segment = path.removeprefix("/prefix/api/jobs/")
    assert "/" not in segment
    assert unquote(segment) == job_id


@pytest.mark.parametrize("job_id", ["", None])
async def test_missing_ids(server: JobServer, job_id: Any) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        for call in (client.get_job_info, client.stop_job, client.wait_until_finish):
            with pytest.raises(errors.InvalidRequest):
                await call(job_id)


async def test_one_job(server: JobServer) -> None:
    server.jobs["a"] = job("a", job_id="01000000", driver_exit_code=3, status="FAILED")
    server.logs["a"] = "ä\n".encode() + b"\xff"
    async with AsyncJobSubmissionClient(server.url) as client:
        info = await client.get_job_info("a")
        assert type(info) is JobInfo
        assert info.driver_exit_code == 3
        assert await client.get_job_status("a") is JobStatus.FAILED
        assert await client.get_job_logs("a") == "ä\n\ufffd"
        assert await client.stop_job("a") is False
        assert await client.delete_job("a") is True
        for call in (client.get_job_info, client.stop_job, client.delete_job, client.get_job_logs):
            with pytest.raises(errors.JobNotFound):
                await call("a")


async def test_details(server: JobServer) -> None:
    server.jobs["a"] = job("a", pending_reason="CPUs")
    async with AsyncJobSubmissionClient(server.url) as client:
        details = await client.get_job_details("a")
    assert isinstance(details, JobDetails)
    assert details.pending_reason == "CPUs"


async def test_list_is_newest_first_and_has_drivers(server: JobServer) -> None:
    server.jobs = {
        "old": job("old", start_time=1),
        "new": job("new", start_time=3),
        "driver": job(None, type="DRIVER", job_id="02000000", start_time=2),  # type: ignore[arg-type]
        "unstarted": job("unstarted", start_time=None),
    }
    async with AsyncJobSubmissionClient(server.url) as client:
        assert list(await client.list_jobs()) == ["new", "02000000", "old", "unstarted"]
    assert server.requests == [("GET", "/api/jobs/")]


async def test_list_in_pages(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.client.listing.PAGE_SIZE", 2)
    server.jobs = {f"j{n}": job(f"j{n}", status="FAILED" if n % 2 else "RUNNING") for n in range(7)}
    async with AsyncJobSubmissionClient(server.url) as client:
        assert list(await client.list_jobs(limit=3)) == ["j0", "j1", "j2"]
        failed = await client.list_jobs(status="FAILED")
        assert list(failed) == ["j1", "j3", "j5"]
        both = await client.list_jobs(status={JobStatus.FAILED, JobStatus.RUNNING}, limit=100)
        assert len(both) == 7
    assert "status=FAILED&status=RUNNING" in server.paths("GET")[-1]


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": "1"}, {"status": "DONE"}, {"status": 1}, {"status": ["x"]}]
)
async def test_malformed_filters(server: JobServer, wrong: Any) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.InvalidRequest):
            await client.list_jobs(**wrong)


async def test_server_info_is_asked_once(server: JobServer) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        infos = await asyncio.gather(*[client.get_server_info() for _ in range(5)])
        assert await client.get_version() == "4"
    assert server.requests == [("GET", "/api/version")]
    assert infos[0].is_ray_jobs
    assert infos[0].server_version == "0.1.0"
    assert infos[0].max_package_bytes == 1 << 20


async def test_what_rays_own_server_lacks(server: JobServer) -> None:
    server.is_ray_jobs = False
    server.jobs["a"] = job("a")
    async with AsyncJobSubmissionClient(server.url) as client:
        info = await client.get_server_info()
        assert not info.is_ray_jobs
        assert info.max_package_bytes == 100 * 1024 * 1024
        assert list(await client.list_jobs()) == ["a"]
        for call in (client.get_job_details("a"), client.list_jobs(limit=1)):
            with pytest.raises(errors.UnsupportedByServer, match=r"Ray 2\.60"):
                await call


async def test_web_page_instead_of_an_answer(server: JobServer) -> None:
    server.answer("GET", "/api/jobs/", 200, "<html><title>Log in</title></html>")
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.UnexpectedResponse, match=r"127\.0\.0\.1.*Log in"):
            await client.list_jobs()


async def test_cookies(server: JobServer) -> None:
    async with AsyncJobSubmissionClient(server.url, cookies={"session": "a=b"}) as client:
        await client.list_jobs()
    assert server.headers[0]["Cookie"] == "session=a=b"


async def test_closed_client(server: JobServer) -> None:
    client = AsyncJobSubmissionClient(server.url)
    for _ in range(PLAIN_REQUESTS + 1):
        await client.list_jobs()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.list_jobs()


def test_one_client_in_several_loops(server: JobServer) -> None:
    client = AsyncJobSubmissionClient(server.url)

    async def use() -> None:
        await asyncio.gather(client.list_jobs(), client.get_version())

    async def close() -> None:
        await client.close()

    for _ in range(PLAIN_REQUESTS):
        asyncio.run(use())
    asyncio.run(close())


def test_forgotten_client_closes_its_connections(server: JobServer) -> None:
    async def use() -> None:
        client = AsyncJobSubmissionClient(server.url)
        for _ in range(PLAIN_REQUESTS + 1):
            await client.list_jobs()
        del client
        gc.collect()

    asyncio.run(use())
    gc.collect()
