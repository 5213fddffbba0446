"""A server that takes connections and says nothing: it hangs, or its machine is gone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from aiohttp import web

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient, errors
from ray_jobs.client import tailing, transport, waiting
from ray_jobs.client.retry import RetryPolicy
from ray_jobs.models import JobStatus
from tests.unit.client.job_server import JobServer, job

TAIL = "/api/ray_jobs/v1/jobs/a/logs/tail"
WINDOW_S = 0.3
#: Much more than the times that are set here, and much less than those that aren't.
SOON_S = 10.0


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that never accepts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "WEBSOCKET_TIMEOUT_S", 0.2)
    monkeypatch.setattr(tailing, "LASTING_S", 0.1)
    monkeypatch.setattr(waiting, "GRACE_S", 0.1)


def impatient(address: str) -> AsyncJobSubmissionClient:
    client = AsyncJobSubmissionClient(address)
    client._retry = RetryPolicy(window_s=WINDOW_S, first_delay_s=0.001, longest_delay_s=0.01)
    return client


def answer_late(server: JobServer, path: str, late_s: float, answer: web.Response) -> None:
    async def handler(_request: web.Request) -> web.Response:
        await asyncio.sleep(late_s)
        return web.Response(status=answer.status, body=answer.body)

    server.overrides["GET", path] = handler


async def test_a_followed_log_is_given_up(server: JobServer, silent: str) -> None:
    """Though each try takes longer than a connection that counts as one that lasted."""
    began = time.monotonic()
    async with impatient(server.url) as client:
        await client.get_server_info()
        client._open()._base = silent  # the server hangs from now on
        with pytest.raises(errors.LogStreamInterrupted, match="in time"):
            [chunk async for chunk in client.tail_job_logs("a")]
    assert time.monotonic() - began < SOON_S


async def test_an_answer_that_is_long_in_coming_is_no_connection(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "WEBSOCKET_TIMEOUT_S", SOON_S)
    # Longer than what lasts.
    answer_late(server, TAIL, 0.15, web.Response(status=503, text="Busy"))
    began = time.monotonic()
    async with impatient(server.url) as client:
        with pytest.raises(errors.LogStreamInterrupted, match="Busy"):
            [chunk async for chunk in client.tail_job_logs("a")]
    assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize("timeout", [0, 0.3])
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_wait_takes_no_longer_than_asked(
    server: JobServer, silent: str, timeout: float, is_known: bool
) -> None:
    began = time.monotonic()
    async with impatient(server.url) as client:
        if is_known:
            await client.get_server_info()
        client._open()._base = silent
        with pytest.raises(errors.WaitTimeout, match="in time"):
            await client.wait_until_finish("a", timeout)
    assert time.monotonic() - began < SOON_S


def test_a_wait_of_the_synchronous_client(silent: str) -> None:
    began = time.monotonic()
    with JobSubmissionClient(silent) as client, pytest.raises(errors.WaitTimeout):
        client.wait_until_finish("a", 0.1)
    assert time.monotonic() - began < SOON_S


async def test_a_late_answer_within_the_grace_counts(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "GRACE_S", SOON_S)
    ended = job("a", status="SUCCEEDED", end_time=1)
    answer_late(server, "/api/ray_jobs/v1/jobs/a/wait", 0.2, web.json_response(ended))
    async with impatient(server.url) as client:
        info = await client.wait_until_finish("a", 0.05)
    assert info.status is JobStatus.SUCCEEDED
