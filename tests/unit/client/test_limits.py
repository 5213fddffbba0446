"""A server that is over a limit (429) has done nothing: it is asked again when it says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from ray_jobs import AsyncJobSubmissionClient, errors
from ray_jobs.client import retry
from tests.unit.client.job_server import Handler, JobServer, job


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how long is waited between attempts, and don't wait."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def nap(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", nap)
    return slept


def refuse(server: JobServer, method: str, path: str, *retry_after: str) -> None:
    """Answer so many requests with 429, then as ever."""
    left = list(retry_after)

    async def handler(request: web.Request) -> web.StreamResponse:
        seconds = left.pop(0)
        if not left:
            del server.overrides[method, path]
        return web.Response(status=429, text="Busy.", headers={"Retry-After": seconds})

    refusal: Handler = handler
    server.overrides[method, path] = refusal


async def test_submit_stop_and_delete_wait(server: JobServer, naps: list[float]) -> None:
    refuse(server, "POST", "/api/jobs/", "7", "2")
    async with AsyncJobSubmissionClient(server.url) as client:
        job_id = await client.submit_job(entrypoint="true", submission_id="mine")
        assert naps == [7.0, 2.0]
        assert len(server.submissions) == 1
        refuse(server, "POST", "/api/jobs/mine/stop", "3")
        assert await client.stop_job(job_id) is True
        refuse(server, "DELETE", "/api/jobs/mine", "4")
        assert await client.delete_job(job_id) is True
    assert naps == [7.0, 2.0, 3.0, 4.0]


async def test_upload_waits(server: JobServer, naps: list[float], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")

    async def refuse_first(request: web.Request) -> web.StreamResponse:
        del server.overrides["GET", request.path]
        return web.Response(status=429, headers={"Retry-After": "5"})

    async with AsyncJobSubmissionClient(server.url) as client:
        env = {"working_dir": str(tmp_path)}
        await client.submit_job(entrypoint="true", runtime_env=env)
        [uri] = server.packages
        server.packages.clear()
        server.overrides["GET", f"/api/packages/gcs/{uri.removeprefix('gcs://')}"] = refuse_first
        await client.submit_job(entrypoint="true", runtime_env=env)
    assert list(server.packages) == [uri]
    assert naps == [5.0]


async def test_a_limit_that_lasts_is_an_error(server: JobServer, naps: list[float]) -> None:
    server.answer("POST", "/api/jobs/", 429, "Busy.", Retry_After="9")
    async with AsyncJobSubmissionClient(server.url) as client:
        client._retry = retry.RetryPolicy(window_s=0.0)
        with pytest.raises(errors.TooManyRequests, match="Busy") as caught:
            await client.submit_job(entrypoint="true")
    assert caught.value.retry_after_s == 9
    assert naps == []


async def test_our_own_api_says_when_too(server: JobServer) -> None:
    body = '{"error": {"code": "too_many_requests", "message": "Busy."}}'
    server.jobs["mine"] = job("mine")
    server.answer("GET", "/api/ray_jobs/v1/jobs/mine", 429, body, Retry_After="6")
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(errors.TooManyRequests) as caught:
            await client.get_job_details("mine")
    assert caught.value.retry_after_s == 6
