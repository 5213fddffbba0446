"""Running rows against one of the two servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
import traceback
from collections.abc import Sequence

import aiohttp

from benchmarks.api import Api
from benchmarks.bench import Bench, Options, Row, Stage
from benchmarks.figures import words_of
from benchmarks.health import health_words
from benchmarks.probe import Probe
from benchmarks.processes import ClusterProcesses
from benchmarks.report import RowResult
from tests.cluster import Cluster, plugin, running_cluster


def run_against(is_ours: bool, rows: Sequence[Row], options: Options) -> list[RowResult]:
    """Start the cluster of each stage in turn, and run its rows there one at a time."""
    results: list[RowResult] = []
    server = "ray-jobs" if is_ours else "Ray's own job server"
    for stage in Stage:
        of_stage = [row for row in rows if row.stage is stage and (is_ours or row.is_stock_able)]
        if not of_stage:
            continue
        print(f"{server}: {stage.value}", flush=True)
        with (
            plugin(enabled=is_ours),
            running_cluster(dict(stage.env), cpus=os.cpu_count() or 1) as cluster,
        ):
            results += asyncio.run(_run_stage(cluster, is_ours, of_stage, options))
    return results


async def _run_stage(
    cluster: Cluster, is_ours: bool, rows: list[Row], options: Options
) -> list[RowResult]:
    async with Api(cluster.address) as api:
        bench = Bench(
            api=api,
            cluster=cluster,
            # The fixture has no word for it: no test needs the pid of `ray start`.
            processes=ClusterProcesses(cluster._nodes[0].pid, cluster.folder),
            probe=Probe(cluster.address),
            options=options,
            is_ours=is_ours,
        )
        if rows[0].stage is not Stage.MANY:  # whose KV is filled before the server's first use
            await api.run("true")  # the server's own start isn't measured
        return [await _run_row(row, bench) for row in rows]


#: What a row may fail with; the others are run all the same.
FAILURES = (
    AssertionError,
    OSError,
    LookupError,
    RuntimeError,
    ValueError,
    asyncio.TimeoutError,
    aiohttp.ClientError,
    subprocess.SubprocessError,
)


async def _run_row(row: Row, bench: Bench) -> RowResult:
    await bench.quiet()
    began = time.monotonic()
    bench.probe = Probe(bench.cluster.address)
    bench.probe.start()
    error = ""
    figures = []
    try:
        figures = await row.work(bench)
    except FAILURES:
        error = traceback.format_exc(limit=-1).strip()
        with contextlib.suppress(*FAILURES):
            await bench.api.stop_live()
        print(f"  {row.key} failed: {error}", flush=True)
    finally:
        bench.probe.stop()
    for figure in figures:
        print(f"  {row.key}: {figure.name}: {words_of(figure.median, figure.unit)}", flush=True)
    result = RowResult(row.key, figures, time.monotonic() - began, bench.probe.samples_ms, error)
    print(f"  {row.key}: {health_words(result)}", flush=True)
    return result
