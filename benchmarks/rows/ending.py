"""Ends: a stop, and an entrypoint that dies by itself, to where a client sees it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from benchmarks.api import since_ms
from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure
from benchmarks.processes import sleep_command

#: From RUNNING to an entrypoint that has begun there is no event. The time varies, since a server
#: that looks at its jobs ten times a second would always be met at the same point.
START_S = (0.3, 0.5)


async def stopping(bench: Bench, job_id: str) -> float:
    """Return the milliseconds from a stop to the sight of STOPPED."""
    began = time.perf_counter()
    await bench.api.stop(job_id)
    await bench.api.until(job_id, "STOPPED")
    return since_ms(began)


async def dying(bench: Bench, job_id: str, number: int) -> float:
    """Return the milliseconds from the death of an entrypoint to the sight of FAILED."""
    pid = bench.processes.entrypoint(number)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await bench.api.until(job_id, "FAILED")
    return since_ms(began)


async def stop(bench: Bench) -> list[Figure]:
    samples = []
    for number in range(bench.repetitions(ours=40, stock=8)):
        job_id = await bench.api.submit(sleep_command(number))
        await bench.api.until(job_id, "RUNNING")
        await asyncio.sleep(random.uniform(*START_S))
        samples.append(await stopping(bench, job_id))
    return [Figure.of("stop to STOPPED seen, process ends on SIGTERM", "ms", samples)]


async def end(bench: Bench) -> list[Figure]:
    samples = []
    for number in range(bench.repetitions(ours=40, stock=8)):
        job_id = await bench.api.submit(sleep_command(number))
        await bench.api.until(job_id, "RUNNING")
        await asyncio.sleep(random.uniform(*START_S))
        samples.append(await dying(bench, job_id, number))
    return [Figure.of("entrypoint killed to FAILED seen", "ms", samples)]


ROWS = (
    Row("stop", "stop of a job to STOPPED seen", stop),
    Row("end", "death of an entrypoint to FAILED seen", end),
)
