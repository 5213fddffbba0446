"""A job that connects to Ray, against the same script run by hand on the node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.api import since_ms, timed_ms
from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure

SCRIPT = Path(__file__).parent / "driver_script.py"


async def driver(bench: Bench) -> list[Figure]:
    """By turns, so that both meet the same machine."""
    command = [sys.executable, str(SCRIPT)]
    env = {**bench.cluster.env, "RAY_ADDRESS": bench.cluster.gcs_address}

    def by_hand() -> float:
        began = time.perf_counter()
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
        return since_ms(began)

    await bench.api.run(" ".join(command))
    await asyncio.to_thread(by_hand)
    as_job, alone = [], []
    for _ in range(bench.repetitions(ours=12, stock=6)):
        alone.append(await asyncio.to_thread(by_hand))
        as_job.append(await timed_ms(lambda: bench.api.run(" ".join(command))))
    job = Figure.of("a driver that connects to Ray and runs one task", "ms", as_job)
    hand = Figure.of("the same script run by hand", "ms", alone)
    more = Figure.of("what the job takes more than by hand", "ms", job.median - hand.median)
    return [job, hand, more]


ROWS = (Row("driver", "a driver with one task, as a job and by hand", driver),)
