"""The job API as a plain HTTP client uses it: the same code for both servers."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import time
import uuid
import zipfile
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

#: How often a client looks whether a job has ended.
POLL_S = 0.005
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
REQUEST_TIMEOUT_S = 600.0
#: Submissions on their way at once, in bursts.
MAX_SUBMITTING = 32
READ_BYTES = 1 << 20


class Api:
    """The job API of one server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S))

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.session.close()

    async def submit(self, entrypoint: str, **fields: Any) -> str:
        """Submit a job. Returns its id, once the server has acknowledged it."""
        job_id = f"bench-{uuid.uuid4().hex}"
        body = {"entrypoint": entrypoint, "submission_id": job_id, **fields}
        async with self.session.post(f"{self.address}/api/jobs/", json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, text
        return job_id

    async def submit_all(self, entrypoints: list[str]) -> list[str]:
        """Submit jobs, `MAX_SUBMITTING` at once. Returns their ids in order."""
        room = asyncio.Semaphore(MAX_SUBMITTING)

        async def submit(entrypoint: str) -> str:
            async with room:
                return await self.submit(entrypoint)

        return await asyncio.gather(*map(submit, entrypoints))

    async def job(self, job_id: str) -> dict[str, Any]:
        async with self.session.get(f"{self.address}/api/jobs/{job_id}") as answer:
            assert answer.status == 200, await answer.text()
            job: dict[str, Any] = await answer.json()
            return job

    async def until(self, job_id: str, *statuses: str) -> None:
        """Look at a job until it has one of the statuses. Fails when it ends as anything else."""
        while (job := await self.job(job_id))["status"] not in statuses:
            assert job["status"] not in ENDED, f"{job_id}: {job['status']}: {job['message']}"
            await asyncio.sleep(POLL_S)

    async def until_all(self, job_ids: list[str], *statuses: str) -> None:
        """Wait for jobs one after another: many pollers would take the CPU that the jobs need."""
        for job_id in job_ids:
            await self.until(job_id, *statuses)

    async def run(self, entrypoint: str, **fields: Any) -> str:
        """Run a job to its success. Returns its id."""
        job_id = await self.submit(entrypoint, **fields)
        await self.until(job_id, "SUCCEEDED")
        return job_id

    async def stop(self, job_id: str) -> None:
        async with self.session.post(f"{self.address}/api/jobs/{job_id}/stop") as answer:
            assert answer.status == 200, await answer.text()

    async def stop_live(self) -> None:
        """Stop what a row left behind that failed."""
        for job in json.loads(await self.get("/api/jobs/")):
            if job["type"] == "SUBMISSION" and job["status"] not in ENDED:
                await self.stop(job["submission_id"])

    async def get(self, path: str) -> bytes:
        """Return the body of any answer."""
        async with self.session.get(f"{self.address}{path}") as answer:
            body = await answer.read()
            assert answer.status == 200, body[:500]
            return body

    async def have_package(self, name: str, files: dict[str, str]) -> str:
        """Upload a package unless the server has it. Returns its URI."""
        url = f"{self.address}/api/packages/gcs/{name}"
        async with self.session.get(url) as answer:
            if answer.status != 200:
                async with self.session.put(url, data=zipped(files)) as put:
                    assert put.status == 200, await put.text()
        return f"gcs://{name}"


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def download(address: str, path: str, byte_range: str = "") -> int:
    """Read the body of an answer as fast as Python can, and drop it. Returns its size. Blocking."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=REQUEST_TIMEOUT_S
    )
    try:
        connection.request("GET", path, headers={"Range": byte_range} if byte_range else {})
        answer = connection.getresponse()
        assert answer.status == (206 if byte_range else 200), answer.read(500)
        buffer = bytearray(READ_BYTES)
        size = 0
        while count := answer.readinto(buffer):
            size += count
        return size
    finally:
        connection.close()


async def timed_ms(call: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds that a call takes."""
    began = time.perf_counter()
    await call()
    return since_ms(began)


def since_ms(began: float) -> float:
    """Return the milliseconds since a `time.perf_counter()`."""
    return (time.perf_counter() - began) * 1000
