"""Big logs: how fast they are read, and what the server's memory makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from benchmarks.api import download
from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure
from benchmarks.processes import memory_mb, peak_memory_mb, reset_peak_memory

LOG_MB = 50
HUGE_LOG_MB = 1000
#: The stock server takes twelve times the log's size of memory.
STOCK_HUGE_LOG_MB = 200
QUICK_HUGE_LOG_MB = 100
RANGE_MB = 10
LINE = "0123456789" * 9 + "abcdefghi"
#: Whose memory a log passes through; the stock server reads it in the agent.
SERVER_ROLES = ("dashboard", "agent")


async def job_with_log(bench: Bench, megabytes: int) -> str:
    """Return a job whose log has that many megabytes and a little more."""
    if megabytes not in bench.big_logs:
        command = f"yes {LINE} | head -c {megabytes}000000"
        bench.big_logs[megabytes] = await bench.api.run(command)
        await bench.quiet()
    return bench.big_logs[megabytes]


async def rates(
    bench: Bench, path: str, least_mb: float, count: int, part: str = ""
) -> list[float]:
    """Return the MB/s of several downloads, after a first one that isn't counted."""
    found = []
    for _ in range(count + 1):
        began = time.perf_counter()
        size = await asyncio.to_thread(download, bench.api.address, path, part)
        found.append(size / 1e6 / (time.perf_counter() - began))
        assert size >= least_mb * 1e6, f"{size} bytes"
    return found[1:]


async def stock_route(bench: Bench) -> list[Figure]:
    job_id = await job_with_log(bench, LOG_MB)
    count = bench.repetitions(ours=20, stock=4)
    found = await rates(bench, f"/api/jobs/{job_id}/logs", LOG_MB, count)
    return [Figure.of(f"{LOG_MB} MB log through `GET .../logs`", "MB/s", found)]


@contextlib.contextmanager
def memory_growth(bench: Bench, found: list[float]) -> Iterator[None]:
    """Append by how many MB the resident memory of the server grew at most meanwhile."""
    pids = [pid for role in SERVER_ROLES for pid in bench.processes.of_role(role)]
    before = {pid: memory_mb(pid) for pid in pids}
    reset_peak_memory(pids)
    yield
    found.append(sum(max(0.0, peak_memory_mb(pid) - before[pid]) for pid in pids))


async def huge_log(bench: Bench) -> list[Figure]:
    megabytes, stock_megabytes = HUGE_LOG_MB, STOCK_HUGE_LOG_MB
    if bench.options.quick:
        megabytes = stock_megabytes = QUICK_HUGE_LOG_MB
    name = f"{megabytes} MB log (stock: {stock_megabytes}) through `GET .../logs`"
    if not bench.is_ours:
        megabytes = stock_megabytes
    job_id = await job_with_log(bench, megabytes)
    growth: list[float] = []
    for _ in range(1 if bench.options.quick or not bench.is_ours else 3):
        with memory_growth(bench, growth):
            found = await rates(bench, f"/api/jobs/{job_id}/logs", megabytes, 1)
    return [
        Figure.of(name, "MB/s", found),
        Figure.of("growth of the server's memory meanwhile", "MB", growth),
    ]


async def raw_route(bench: Bench) -> list[Figure]:
    megabytes = QUICK_HUGE_LOG_MB if bench.options.quick else HUGE_LOG_MB
    job_id = await job_with_log(bench, megabytes)
    path = f"/api/ray_jobs/v1/jobs/{job_id}/logs"
    first = megabytes // 2 * 1_000_000
    part = f"bytes={first}-{first + RANGE_MB * 1_000_000 - 1}"
    growth: list[float] = []
    with memory_growth(bench, growth):
        whole = await rates(bench, path, megabytes, bench.repetitions(ours=8))
        ranges = await rates(bench, path, RANGE_MB, bench.repetitions(ours=20), part)
    return [
        Figure.of(f"raw log of {megabytes} MB, own endpoint", "MB/s", whole),
        Figure.of(f"a range of {RANGE_MB} MB in it", "MB/s", ranges),
        Figure.of("growth of the server's memory meanwhile", "MB", growth),
    ]


ROWS = (
    Row("log50", "a log of 50 MB by the stock route", stock_route),
    Row("log1000", "a log of 1 GB by the stock route, and the server's memory", huge_log),
    Row("raw", "the raw log by our own endpoint", raw_route, is_stock_able=False),
)
