"""`python -m benchmarks [ROW ...]`: run the work against both servers and print the table."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
from importlib import metadata
from pathlib import Path

import aiohttp

from benchmarks.report import Figure, table
from benchmarks.work import ROWS, Api
from tests.cluster import plugin, running_cluster

ROW_TIMEOUT_S = 300.0


async def measure(address: str, rows: list[str], quick: bool) -> list[Figure]:
    figures = []
    timeout = aiohttp.ClientTimeout(total=ROW_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        api = Api(session, address, quick)
        await api.until(await api.submit("true"), "SUCCEEDED")  # the server's own start
        for row in rows:
            name, unit, work = ROWS[row]
            figures.append(Figure.of(name, unit, await work(api)))
            print(f"  {name}: {figures[-1].median:.4g} {unit}", flush=True)
    return figures


def against(is_ours: bool, rows: list[str]) -> list[Figure]:
    print("ray-jobs" if is_ours else "Ray's own job server", flush=True)
    with plugin(enabled=is_ours), running_cluster(cpus=os.cpu_count() or 1) as cluster:
        return asyncio.run(measure(cluster.address, rows, quick=not is_ours))


def header() -> str:
    versions = f"Ray {metadata.version('ray')}, ray-jobs {metadata.version('ray-jobs')}"
    return f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, " + (
        versions
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    rows = arguments.rows or list(ROWS)
    stock, ours = against(False, rows), against(True, rows)
    print(f"\n{header()}\n\n{table(stock, ours)}")
    if arguments.json:
        figures = {
            "machine": header(),
            "stock": [dataclasses.asdict(figure) for figure in stock],
            "ours": [dataclasses.asdict(figure) for figure in ours],
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
