"""Reads, and what a hundred thousand ended jobs do to them and to the manager's restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

from benchmarks.api import download, since_ms, timed_ms
from benchmarks.bench import Bench, Row, Stage
from benchmarks.figures import Figure
from benchmarks.http_load import requests_per_s
from benchmarks.kv_fill import job_id

LISTED = (1_000, 10_000, 50_000)
MANY = 100_000
QUICK_LISTED = (1_000, 10_000)
QUICK_MANY = 20_000
CLIENTS = 32
PAGE = "/api/ray_jobs/v1/jobs?limit=100&status=STOPPED"
FILL_TIMEOUT_S = 600.0
LOOK_S = 0.05
#: After a 503: sooner than it says, so that this isn't what is measured.
RETRY_S = 0.01


def many(bench: Bench) -> int:
    return QUICK_MANY if bench.options.quick else MANY


async def fill(bench: Bench, count: int) -> None:
    """Have `count` ended jobs in the KV, and have the server know them.

    The stock server reads the KV for every list. Ours reads it when its manager starts, so one that
    runs already is killed: the next one takes over all that is there.
    """
    if bench.filled >= count:
        return
    with bench.unprobed():  # a hundred thousand writes to the GCS are no work of the server's
        await write_jobs(bench, bench.filled, count)
        bench.filled = count
        for pid in bench.processes.of_role("manager"):
            os.kill(pid, signal.SIGKILL)
        await bench.api.until(await accepted(bench), "SUCCEEDED")
        deadline = time.monotonic() + FILL_TIMEOUT_S
        while not await knows(bench, job_id(count - 1)):
            assert time.monotonic() < deadline, f"the server doesn't know all of {count} jobs"
            await asyncio.sleep(LOOK_S)
        await bench.quiet()


async def write_jobs(bench: Bench, first: int, end: int) -> None:
    server = "OURS" if bench.is_ours else "STOCK"
    arguments = [bench.cluster.gcs_address, str(first), str(end), server]
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "benchmarks.kv_fill", *arguments],
        env=bench.cluster.env,
        check=True,
        timeout=FILL_TIMEOUT_S,
    )


async def knows(bench: Bench, job: str) -> bool:
    async with bench.api.session.get(f"{bench.api.address}/api/jobs/{job}") as answer:
        await answer.read()
        return answer.status == 200


async def accepted(bench: Bench) -> str:
    """Submit until it is accepted, as a client does that is told to try again. Returns the id."""
    body = {"entrypoint": "true"}
    while True:
        async with bench.api.session.post(f"{bench.api.address}/api/jobs/", json=body) as answer:
            text = await answer.text()
            if answer.status == 200:
                submission_id: str = json.loads(text)["submission_id"]
                return submission_id
            assert answer.status == 503, text
        await asyncio.sleep(RETRY_S)


async def lists(bench: Bench) -> list[Figure]:
    figures = []
    for count in QUICK_LISTED if bench.options.quick else LISTED:
        await fill(bench, count)
        listed = json.loads(await bench.api.get("/api/jobs/"))
        assert len(listed) >= count, len(listed)

        async def once() -> None:
            await asyncio.to_thread(download, bench.api.address, "/api/jobs/")

        samples = [await timed_ms(once) for _ in range(bench.repetitions(ours=20, stock=4))]
        figures.append(Figure.of(f"list of {count:,} jobs, stock format", "ms", samples))
    return figures


async def page(bench: Bench) -> list[Figure]:
    await fill(bench, many(bench))
    answer = json.loads(await bench.api.get(PAGE))
    assert len(answer["jobs"]) == 100, len(answer["jobs"])
    samples = []
    for _ in range(bench.repetitions(ours=200)):
        samples.append(await timed_ms(lambda: bench.api.get(PAGE)))
    return [Figure.of(f"page of 100 of {many(bench):,} jobs, by status", "ms", samples)]


async def reads(bench: Bench) -> list[Figure]:
    job = await bench.api.run("true")
    return [Figure.of(f"`GET` one job, {CLIENTS} clients", "requests/s", await _reads(bench, job))]


async def reads_of_many(bench: Bench) -> list[Figure]:
    await fill(bench, many(bench))
    rates = await _reads(bench, job_id(many(bench) // 2))
    return [Figure.of(f"the same with {many(bench):,} jobs", "requests/s", rates)]


async def _reads(bench: Bench, job: str) -> list[float]:
    seconds = bench.repetitions(ours=12, stock=8)
    path = f"/api/jobs/{job}"
    return await asyncio.to_thread(requests_per_s, bench.api.address, path, CLIENTS, seconds)


async def restart(bench: Bench) -> list[Figure]:
    await fill(bench, many(bench))
    samples = []
    for _ in range(bench.repetitions(ours=5)):
        [pid] = bench.processes.of_role("manager")
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        job = await accepted(bench)
        samples.append(since_ms(began))
        await bench.api.until(job, "SUCCEEDED")
        await bench.quiet()
    name = f"manager killed to a submission accepted, {many(bench):,} jobs"
    return [Figure.of(name, "ms", samples)]


READ_ROWS = (Row("reads", "GET of one job by 32 clients", reads),)
ROWS = (
    Row("list", "lists of 1,000, 10,000 and 50,000 jobs", lists, Stage.MANY),
    Row("page", "a page of very many jobs, by status", page, Stage.MANY, is_stock_able=False),
    Row("reads-many", "GET of one of very many jobs", reads_of_many, Stage.MANY),
    Row("restart", "the manager's restart with very many jobs", restart, Stage.MANY, False),
)
