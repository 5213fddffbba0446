"""A job that connects to Ray, against the same script run by hand on the node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.api import since_ms, timed_ms
from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure

SCRIPT = Path(__file__).parent / "driver_script.py"
#: Either way takes 1.5 to 2.5 s, mostly what Ray takes to start a worker and to take leave: what
#: lies between the two is far less than that, so it takes many pairs to be seen.
OUR_PAIRS = 20
STOCK_PAIRS = 6
#: Of what the script takes by hand at least: a client that looks every few milliseconds takes a
#: fifth of two cores, here and in the dashboard, which the driver and its worker would do without.
UNWATCHED_PART = 0.8


async def driver(bench: Bench) -> list[Figure]:
    """In pairs, by hand first in every other one, so that both meet the same machine."""
    command = [sys.executable, str(SCRIPT)]
    env = {**bench.cluster.env, "RAY_ADDRESS": bench.cluster.gcs_address}

    def run_by_hand() -> float:
        # With its output to a file, as a job's.
        with (bench.cluster.folder / "by_hand.out").open("wb") as out:
            began = time.perf_counter()
            subprocess.run(
                command,
                env=env,
                cwd=bench.cluster.folder,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=120,
            )
            return since_ms(began)

    async def by_hand() -> float:
        return await asyncio.to_thread(run_by_hand)

    async def run_job() -> None:
        job_id = await bench.api.submit(" ".join(command))
        await asyncio.sleep(UNWATCHED_PART * min(hands) / 1000)
        await bench.api.until(job_id, "SUCCEEDED")

    async def as_job() -> float:
        return await timed_ms(run_job)

    async def rested(run: Callable[[], Awaitable[float]]) -> float:
        # For a while after a driver, Ray ends its workers.
        await bench.quiet()
        return await run()

    hands = [await rested(by_hand)]
    jobs = [await rested(as_job)]
    for number in range(bench.repetitions(ours=OUR_PAIRS, stock=STOCK_PAIRS)):
        for run, samples in ((by_hand, hands), (as_job, jobs))[:: -1 if number % 2 else 1]:
            samples.append(await rested(run))
    del hands[0], jobs[0]
    more = [job - hand for job, hand in zip(jobs, hands, strict=True)]
    return [
        Figure.of("a driver that connects to Ray and runs one task", "ms", jobs),
        Figure.of("the same script run by hand", "ms", hands),
        Figure.of("what the job takes more than by hand, pair by pair", "ms", more),
    ]


ROWS = (Row("driver", "a driver with one task, as a job and by hand", driver),)
