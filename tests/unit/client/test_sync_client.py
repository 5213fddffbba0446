from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from ray_jobs import errors
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.sync_client import JobSubmissionClient
from ray_jobs.client.transport import PLAIN_REQUESTS
from ray_jobs.client.types import Progress
from ray_jobs.models import JobStatus
from tests.unit.client.job_server import JobServer, job

TAIL = "/api/ray_jobs/v1/jobs/a/logs/tail"
WAIT = "/api/ray_jobs/v1/jobs/a/wait"


@pytest.fixture
def client(server: JobServer) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(server.url) as client:
        yield client


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("ray-jobs-client")]


def test_same_methods_as_the_asynchronous_one() -> None:
    def signatures(one: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: list(inspect.signature(value).parameters.values())
            for name, value in vars(one).items()
            if inspect.isfunction(value) and (not name.startswith("_") or name == "__init__")
        }

    assert signatures(JobSubmissionClient) == signatures(AsyncJobSubmissionClient)


def test_creating_a_client_starts_nothing(server: JobServer) -> None:
    with JobSubmissionClient(server.url) as client:
        assert client.address == client.get_address() == server.url
        assert threads() == []
    assert server.requests == []


def test_the_whole_of_it(client: JobSubmissionClient, server: JobServer) -> None:
    submission_id = client.submit_job(entrypoint="true")
    assert client.get_job_status(submission_id) is JobStatus.RUNNING
    assert client.get_job_info(submission_id).entrypoint == "true"
    assert client.get_job_details(submission_id).revision == 1
    assert list(client.list_jobs()) == list(client.list_jobs(limit=5)) == [submission_id]
    assert client.get_job_logs(submission_id) == ""
    assert client.get_version() == "4"
    assert client.get_server_info().is_ray_jobs
    assert client.stop_job(submission_id) is True
    assert client.delete_job(submission_id) is True
    with pytest.raises(errors.JobNotFound):
        client.get_job_info(submission_id)


def test_tail_is_a_plain_iterator(client: JobSubmissionClient, server: JobServer) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        for line in (b"a\n", b"b\n", b"c\n"):
            await websocket.send_bytes(line)
        return websocket

    server.overrides["GET", TAIL] = handler
    assert list(client.tail_job_logs("a")) == ["a\n", "b\n", "c\n"]
    for line in client.tail_job_logs("a"):
        assert line == "a\n"
        break
    left_open = client.tail_job_logs("a")
    assert next(left_open) == "a\n"
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(left_open)


async def serve_lines(request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    for line in (b"a\n", b"b\n", b"c\n"):
        await websocket.send_bytes(line)
    return websocket


async def test_tail_is_an_async_iterator_too(
    client: JobSubmissionClient, server: JobServer
) -> None:
    server.overrides["GET", TAIL] = serve_lines
    assert [line async for line in client.tail_job_logs("a")] == ["a\n", "b\n", "c\n"]
    stream = client.tail_job_logs("a")
    assert await anext(stream) == "a\n"
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    server.answer("GET", TAIL, 404, "Job a does not exist")
    with pytest.raises(errors.JobNotFound):
        [line async for line in client.tail_job_logs("a")]


async def test_an_awaited_stream_leaves_the_loop_alone(
    client: JobSubmissionClient, server: JobServer
) -> None:
    asked, gone = threading.Event(), threading.Event()

    async def quiet(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        asked.set()
        await websocket.receive()
        gone.set()
        return websocket

    server.overrides["GET", TAIL] = quiet
    waiting = asyncio.ensure_future(client.tail_job_logs("a").__anext__())
    assert await asyncio.to_thread(asked.wait, 5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(gone.wait, 5)


async def test_an_awaited_stream_of_a_closed_client(
    client: JobSubmissionClient, server: JobServer
) -> None:
    server.overrides["GET", TAIL] = serve_lines
    stream = client.tail_job_logs("a")
    assert await anext(stream) == "a\n"
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await anext(stream)


def test_wait_and_watch(client: JobSubmissionClient, server: JobServer) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response(job("a", status="STOPPED"))

    server.overrides["GET", WAIT] = handler
    assert client.wait_until_finish("a", timeout=5).status is JobStatus.STOPPED
    assert [found.status.value for found in client.watch_job("a")] == ["STOPPED"]


async def test_within_a_running_loop(client: JobSubmissionClient) -> None:
    assert client.list_jobs() == {}


def test_in_many_threads(client: JobSubmissionClient, server: JobServer) -> None:
    workers = [
        threading.Thread(target=client.submit_job, kwargs={"entrypoint": "true"}) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(server.jobs) == 8
    assert len(threads()) == 1


def test_close_ends_the_thread(server: JobServer) -> None:
    client = JobSubmissionClient(server.url)
    for _ in range(PLAIN_REQUESTS + 1):
        client.list_jobs()
    assert len(threads()) == 1
    client.close()
    client.close()
    assert threads() == []
    with pytest.raises(RuntimeError, match="closed"):
        client.list_jobs()
    assert threads() == []


def test_forgotten_client_ends_its_thread(server: JobServer) -> None:
    client = JobSubmissionClient(server.url)
    for _ in range(PLAIN_REQUESTS + 1):
        client.list_jobs()
    del client
    gc.collect()
    assert threads() == []


def test_interrupt(client: JobSubmissionClient, server: JobServer) -> None:
    async def never(_request: web.Request) -> web.Response:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        return web.Response()

    server.overrides["GET", WAIT] = never
    with pytest.raises(KeyboardInterrupt):
        client.wait_until_finish("a")
    with pytest.raises(KeyboardInterrupt):
        next(iter(client.watch_job("a")))
    assert client.list_jobs() == {}


def test_call_from_its_own_callback(
    client: JobSubmissionClient, server: JobServer, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("x")

    def on_progress(step: Progress) -> None:
        if step.stage == "uploading":
            client.list_jobs()

    with pytest.raises(RuntimeError, match="callbacks"):
        client.submit_job(
            entrypoint="true", runtime_env={"working_dir": tmp_path}, on_progress=on_progress
        )


def test_after_a_fork(client: JobSubmissionClient, server: JobServer) -> None:
    for _ in range(PLAIN_REQUESTS):
        client.list_jobs()
    client.submit_job(entrypoint="true", submission_id="parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client.submit_job(entrypoint="true", submission_id="child")
            client.close()
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert set(client.list_jobs()) == {"parent", "child"}
