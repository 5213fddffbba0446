from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from aiohttp import web

from ray_jobs import errors
from ray_jobs.client import waiting
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.retry import RetryPolicy
from ray_jobs.models import JobDetails, JobStatus
from tests.unit.client.job_server import JobServer, job

WAIT = "/api/ray_jobs/v1/jobs/a/wait"


class Script:
    """Answers one request after the other with the jobs of a list; the last one again and again."""

    def __init__(self, *jobs: dict[str, Any]) -> None:
        self.jobs = list(jobs)
        self.queries: list[dict[str, str]] = []
        self.asked = threading.Event()

    async def __call__(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        self.asked.set()
        found = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        if "error" in found:
            return web.Response(status=found["error"], text="Busy")
        return web.json_response(found)


RUNNING = job("a", revision=2)
DONE = job("a", status="SUCCEEDED", revision=3, end_time=5)
PENDING = job("a", status="PENDING", revision=1, pending_reason="CPUs")
BUSY = {"error": 503}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0.005)


def fast_client(server: JobServer, window_s: float = 5.0) -> AsyncJobSubmissionClient:
    client = AsyncJobSubmissionClient(server.url)
    client._retry = RetryPolicy(window_s=window_s, first_delay_s=0.001, longest_delay_s=0.01)
    return client


async def test_long_poll(server: JobServer) -> None:
    script = server.overrides["GET", WAIT] = Script(PENDING, RUNNING, DONE)
    async with fast_client(server) as client:
        found = await client.wait_until_finish("a")
    assert isinstance(found, JobDetails)
    assert found.status is JobStatus.SUCCEEDED
    assert [query["timeout_s"] for query in script.queries] == ["25.000"] * 3
    assert "after_revision" not in script.queries[-1]


async def test_rays_own_server_is_polled(server: JobServer) -> None:
    server.is_ray_jobs = False
    script = server.overrides["GET", "/api/jobs/a"] = Script(RUNNING, RUNNING, DONE)
    async with fast_client(server) as client:
        assert (await client.wait_until_finish("a")).end_time == 5
    assert len(script.queries) == 3


@pytest.mark.parametrize("is_ray_jobs", [True, False])
async def test_timeout(server: JobServer, is_ray_jobs: bool) -> None:
    server.is_ray_jobs = is_ray_jobs
    server.overrides["GET", WAIT] = server.overrides["GET", "/api/jobs/a"] = Script(RUNNING)
    async with fast_client(server) as client:
        for timeout in (0.02, 0):
            with pytest.raises(errors.WaitTimeout, match="RUNNING") as caught:
                await client.wait_until_finish("a", timeout=timeout)
            assert isinstance(caught.value, TimeoutError)


async def test_finished_job_with_no_time_left(server: JobServer) -> None:
    server.overrides["GET", WAIT] = Script(DONE)
    async with fast_client(server) as client:
        assert (await client.wait_until_finish("a", timeout=0)).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
async def test_malformed_timeout(server: JobServer, timeout: Any) -> None:
    async with fast_client(server) as client:
        with pytest.raises(errors.InvalidRequest):
            await client.wait_until_finish("a", timeout=timeout)


async def test_unknown_job(server: JobServer) -> None:
    server.answer("GET", WAIT, 404, '{"error": {"code": "job_not_found", "message": "No."}}')
    async with fast_client(server) as client:
        with pytest.raises(errors.JobNotFound):
            await client.wait_until_finish("a")


async def test_outages_are_survived(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    script = server.overrides["GET", WAIT] = Script(RUNNING, RUNNING, DONE)
    async with fast_client(server) as client:
        waiter = asyncio.ensure_future(client.wait_until_finish("a"))
        assert await asyncio.to_thread(script.asked.wait, 5)
        server.stop()
        server.start()
        assert (await waiter).status is JobStatus.SUCCEEDED


async def test_busy_server(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy_first(request: web.Request) -> web.Response:
        server.overrides["GET", WAIT] = Script(DONE)
        return web.Response(status=502, text="<html>Bad gateway</html>")

    server.overrides["GET", WAIT] = busy_first
    async with fast_client(server) as client:
        assert (await client.wait_until_finish("a")).status is JobStatus.SUCCEEDED


async def test_long_outages_are_not(server: JobServer) -> None:
    server.overrides["GET", WAIT] = Script(BUSY)
    async with fast_client(server, window_s=0.03) as client:
        with pytest.raises(errors.ServerNotReady):
            await client.wait_until_finish("a")


async def test_outage_until_the_timeout(server: JobServer) -> None:
    server.stop()
    async with fast_client(server, window_s=0.0) as client:
        with pytest.raises(errors.WaitTimeout, match="as far as known"):
            await client.wait_until_finish("a", timeout=0.03)


async def test_bad_certificates_are_not_waited_for(tls_server: JobServer) -> None:
    async with fast_client(tls_server, window_s=60) as client:
        with pytest.raises(errors.ServerUnreachable, match="secure"):
            await client.wait_until_finish("a", timeout=60)


async def test_watch(server: JobServer) -> None:
    script = server.overrides["GET", WAIT] = Script(PENDING, PENDING, RUNNING, DONE)
    async with fast_client(server) as client:
        seen = [found async for found in client.watch_job("a")]
    assert [found.status.value for found in seen] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert isinstance(seen[0], JobDetails)
    assert seen[0].pending_reason == "CPUs"
    assert script.queries[0] == {"timeout_s": "0.000"}
    revisions = [query["after_revision"] for query in script.queries[1:]]
    assert revisions == ["1", "1", "2"]


async def test_watch_rays_own_server(server: JobServer) -> None:
    server.is_ray_jobs = False
    server.overrides["GET", "/api/jobs/a"] = Script(PENDING, PENDING, RUNNING, DONE)
    async with fast_client(server) as client:
        seen = [found.status.value async for found in client.watch_job("a")]
    assert seen == ["PENDING", "RUNNING", "SUCCEEDED"]
