"""Many short jobs: a burst, and back to back for minutes."""

from __future__ import annotations

import asyncio
import time

from benchmarks.api import MAX_SUBMITTING
from benchmarks.bench import Bench, Row, Stage
from benchmarks.figures import Figure

BURST_JOBS = 300
QUICK_BURST_JOBS = 100
STOCK_BURST_JOBS = 20
#: Jobs that have not ended, in `sustained`: the server always has some to do.
MAX_LIVE_JOBS = 64
#: Of the time of `sustained`, this much is added before it.
WARM_UP_SHARE = 0.2
#: Memory is compared for these; the stock server's manager lives in the agent.
ROLES = ("manager", "agent", "dashboard", "gcs", "raylet", "supervisors", "keepers")


async def burst(bench: Bench) -> list[Figure]:
    total = QUICK_BURST_JOBS if bench.options.quick else BURST_JOBS
    count = total if bench.is_ours else STOCK_BURST_JOBS
    rates, client_cores = [], []
    for _ in range(bench.repetitions(ours=5, stock=2)):
        await bench.quiet()
        began, client_began = time.perf_counter(), time.process_time()
        job_ids = await bench.api.submit_all(["true"] * count)
        await bench.api.until_all(job_ids, "SUCCEEDED")
        took_s = time.perf_counter() - began
        rates.append(count / took_s)
        client_cores.append((time.process_time() - client_began) / took_s)
    name = f"burst of {total} `true` (stock: {STOCK_BURST_JOBS}), all to SUCCEEDED"
    return [
        Figure.of(name, "jobs/s", rates),
        Figure.of("what the client itself used meanwhile", "cores", client_cores),
    ]


class _Flow:
    """Jobs back to back until a time, and how many had ended when."""

    def __init__(self, bench: Bench, end: float) -> None:
        self._bench = bench
        self._end = end
        self._live: asyncio.Queue[str] = asyncio.Queue(MAX_LIVE_JOBS)
        self.ended_at: list[float] = []

    async def run(self) -> None:
        """Return once all have ended. The first failure ends it at once."""
        tasks = [
            asyncio.ensure_future(self._submit_all()),
            asyncio.ensure_future(self._await_all()),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _submit_all(self) -> None:
        await asyncio.gather(*(self._submit() for _ in range(MAX_SUBMITTING)))
        await self._live.put("")  # there are no more

    async def _submit(self) -> None:
        while time.perf_counter() < self._end:
            await self._live.put(await self._bench.api.submit("true"))

    async def _await_all(self) -> None:
        while job_id := await self._live.get():
            await self._bench.api.until(job_id, "SUCCEEDED")
            self.ended_at.append(time.perf_counter())


async def sustained(bench: Bench) -> list[Figure]:
    minutes = bench.options.minutes
    # What grows with the first jobs, as pools do, is no growth over time.
    await _Flow(bench, time.perf_counter() + minutes * 60 * WARM_UP_SHARE).run()
    await bench.quiet()
    before = bench.processes.pss_mb_by_role()
    began = time.perf_counter()
    flow = _Flow(bench, began + minutes * 60)
    await flow.run()
    await bench.quiet()
    after = bench.processes.pss_mb_by_role()
    name = f"{minutes:g} min of `true` back to back"
    figures = [Figure.of(f"{name}", "jobs/s", rates_by_minute(flow.ended_at, began, minutes))]
    for role in ROLES:
        if role in before or role in after:
            first, last = before.get(role, 0.0), after.get(role, 0.0)
            by_thousand = (last - first) / len(flow.ended_at) * 1000
            figures.append(
                Figure.of(
                    f"growth of memory: {role}",
                    "MB",
                    last - first,
                    f"{first:.0f} to {last:.0f}, {len(flow.ended_at):,} jobs,"
                    f" {by_thousand:.2f} MB per 1,000",
                )
            )
    return figures


def rates_by_minute(ended_at: list[float], began: float, minutes: float) -> list[float]:
    """Return the jobs a second that ended in each full minute, or over all if there is none."""
    if minutes < 1:
        return [len(ended_at) / (ended_at[-1] - began)]
    counts = [0] * int(minutes)
    for at in ended_at:
        minute = int((at - began) // 60)
        if minute < len(counts):
            counts[minute] += 1
    return [count / 60 for count in counts]


ROWS = (
    Row("burst", "a burst of short jobs, to the end of the last", burst),
    Row("sustained", "short jobs back to back for --minutes, and what memory grows", sustained),
    Row(
        "retaining",
        "the same where 1,000 finished jobs are kept, the others archived",
        sustained,
        Stage.RETAINING,
        is_stock_able=False,
    ),
)
