"""The command line, as whole processes: each server with its own client."""

from __future__ import annotations

import asyncio
import subprocess
import time

from benchmarks.api import since_ms
from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure
from tests.cluster import BIN

TIMEOUT_S = 120.0


async def whole_process(bench: Bench, count: int, *words: str) -> list[float]:
    """Return the milliseconds of each run of a command, the first one left out."""
    program = [str(BIN / "ray-jobs")] if bench.is_ours else [str(BIN / "ray"), "job"]
    env = {**bench.cluster.env, "RAY_API_SERVER_ADDRESS": bench.api.address}

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(
            [*program, *words], env=env, check=True, capture_output=True, timeout=TIMEOUT_S
        )
        return since_ms(began)

    return [await asyncio.to_thread(once) for _ in range(count + 1)][1:]


async def submit(bench: Bench) -> list[Figure]:
    samples = await whole_process(bench, bench.repetitions(16, 4), "submit", "--", "true")
    return [Figure.of("`ray-jobs submit -- true` (stock: `ray job ...`)", "ms", samples)]


async def submit_no_wait(bench: Bench) -> list[Figure]:
    count = bench.repetitions(16, 8)
    samples = await whole_process(bench, count, "submit", "--no-wait", "--", "true")
    await bench.quiet()
    return [Figure.of("the same with `--no-wait`", "ms", samples)]


async def show_help(bench: Bench) -> list[Figure]:
    samples = await whole_process(bench, bench.repetitions(16, 8), "--help")
    return [Figure.of("`ray-jobs --help`", "ms", samples)]


ROWS = (
    Row("cli", "submit at a shell, to the job's end", submit),
    Row("cli-nowait", "submit at a shell, to its acknowledgement", submit_no_wait),
    Row("cli-help", "--help at a shell", show_help),
)
