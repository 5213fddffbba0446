"""The work: each function does one kind of it over the HTTP API, and returns samples.

The client code is the same for both servers: plain HTTP requests of the stock API.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

#: How often a client looks whether a job has ended.
POLL_S = 0.005
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Api:
    """The stock job API of one server."""

    def __init__(self, session: aiohttp.ClientSession, address: str, quick: bool) -> None:
        self.session = session
        self.address = address
        #: Fewer repetitions, for a server that takes seconds for each.
        self.quick = quick

    async def submit(self, entrypoint: str, **fields: Any) -> str:
        job_id = f"bench-{uuid.uuid4().hex}"
        body = {"entrypoint": entrypoint, "submission_id": job_id, **fields}
        async with self.session.post(f"{self.address}/api/jobs/", json=body) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        return job_id

    async def status(self, job_id: str) -> str:
        async with self.session.get(f"{self.address}/api/jobs/{job_id}") as answer:
            status: str = (await answer.json())["status"]
            return status

    async def until(self, job_id: str, *statuses: str) -> None:
        while (status := await self.status(job_id)) not in statuses:
            assert status not in ENDED, f"{job_id} ended as {status}"
            await asyncio.sleep(POLL_S)

    async def stop(self, job_id: str) -> None:
        async with self.session.post(f"{self.address}/api/jobs/{job_id}/stop") as answer:
            assert answer.status == 200, await answer.text()


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds that a call takes."""
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1000


async def acknowledged(api: Api) -> list[float]:
    samples = []
    for _ in range(20):
        began = time.perf_counter()
        job_id = await api.submit("true")
        samples.append((time.perf_counter() - began) * 1000)
        await api.until(job_id, "SUCCEEDED")
    return samples


async def _to_the_end(api: Api, **fields: Any) -> list[float]:
    async def once() -> None:
        await api.until(await api.submit("true", **fields), "SUCCEEDED")

    await once()
    return [await timed(once) for _ in range(8 if api.quick else 30)]


async def true(api: Api) -> list[float]:
    return await _to_the_end(api)


async def true_with_env_vars(api: Api) -> list[float]:
    return await _to_the_end(api, runtime_env={"env_vars": {"A": "1"}})


async def stopped(api: Api) -> list[float]:
    samples = []
    for _ in range(5 if api.quick else 15):
        job_id = await api.submit("exec sleep 300")
        await api.until(job_id, "RUNNING")
        await asyncio.sleep(0.3)  # the entrypoint itself is up by then
        began = time.perf_counter()
        await api.stop(job_id)
        await api.until(job_id, "STOPPED")
        samples.append((time.perf_counter() - began) * 1000)
    return samples


async def burst(api: Api) -> list[float]:
    """Jobs a second from the first submission of a burst to the end of its last job."""
    count = 20 if api.quick else 60
    began = time.perf_counter()
    ids = await asyncio.gather(*(api.submit("true") for _ in range(count)))
    await asyncio.gather(*(api.until(job_id, "SUCCEEDED") for job_id in ids))
    return [count / (time.perf_counter() - began)]


async def log_line(api: Api) -> list[float]:
    """Milliseconds from printing a line to its arrival at a client that tails."""
    lines = 20
    command = f"for i in $(seq {lines}); do date +%s.%N; sleep 0.25; done"
    job_id = await api.submit(command)
    samples: list[float] = []
    url = f"{api.address}/api/jobs/{job_id}/logs/tail"
    async with api.session.ws_connect(url) as socket:
        async for message in socket:
            now = time.time()
            for line in str(message.data).splitlines():
                try:
                    samples.append((now - float(line)) * 1000)
                except ValueError:
                    continue  # the server's own lines
    assert len(samples) == lines, samples
    return samples


async def listing(api: Api) -> list[float]:
    async def once() -> None:
        async with api.session.get(f"{api.address}/api/jobs/") as answer:
            await answer.read()

    await once()
    return [await timed(once) for _ in range(10)]


async def reads(api: Api) -> list[float]:
    """`GET` of one job, a second, by 32 clients."""
    job_id = await api.submit("true")
    await api.until(job_id, "SUCCEEDED")
    end = time.perf_counter() + 3
    done = 0

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await api.status(job_id)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(32)))
    return [done / (time.perf_counter() - began)]


Work = Callable[[Api], Awaitable[list[float]]]

#: In the order of the table: its words, the unit, and the function.
ROWS: dict[str, tuple[str, str, Work]] = {
    "ack": ("`POST` acknowledged", "ms", acknowledged),
    "true": ("`true`: submit to SUCCEEDED seen", "ms", true),
    "env": ("the same with `env_vars`", "ms", true_with_env_vars),
    "stop": ("stop to STOPPED seen", "ms", stopped),
    "burst": ("burst of `true`, all to SUCCEEDED", "jobs/s", burst),
    "log": ("log line printed to received", "ms", log_line),
    "list": ("list of all the jobs so far", "ms", listing),
    "reads": ("`GET` one job, 32 clients", "requests/s", reads),
}
