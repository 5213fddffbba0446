"""Logs as they are written: the delay of a line, and very many lines."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure, percentile

LINE_INTERVAL_S = 0.025
LINES = 1_000_000


async def tail(bench: Bench, job_id: str) -> AsyncIterator[str]:
    """Yield what a tailing client receives, to the end of the stream."""
    url = f"{bench.api.address}/api/jobs/{job_id}/logs/tail"
    async with bench.api.session.ws_connect(url) as socket:
        async for message in socket:
            assert message.type is aiohttp.WSMsgType.TEXT, message
            yield message.data


async def line_delay(bench: Bench) -> list[Figure]:
    """From just before a line is printed to its arrival. The clock is the machine's, as is all."""
    count = bench.repetitions(ours=600, stock=400)
    script = (
        "import time\n"
        f"for _ in range({count}):\n"
        "    print(time.time(), flush=True)\n"
        f"    time.sleep({LINE_INTERVAL_S})\n"
    )
    job_id = await bench.api.submit(f"{sys.executable} -I -S -c '{script}'")
    samples: list[float] = []
    rest = ""
    async for text in tail(bench, job_id):
        now = time.time()
        *lines, rest = (rest + text).split("\n")
        # The server's own first lines aren't numbers.
        samples += [(now - float(line)) * 1000 for line in lines if is_number(line)]
    assert len(samples) == count, f"{len(samples)} of {count} lines"
    return [
        Figure.of("log line printed to received by a tailing client", "ms", samples),
        Figure.of("the same, p99", "ms", percentile(samples, 99)),
    ]


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


async def million_lines(bench: Bench) -> list[Figure]:
    """Lines as fast as `seq` prints them, with the time before the first and after the last."""
    script = f"date +%s.%N; seq {LINES}; date +%s.%N"
    written, received, lost = [], [], 0
    for _ in range(bench.repetitions(ours=8, stock=2)):
        job_id = await bench.api.submit(script)
        pieces = [piece async for piece in tail(bench, job_id)]
        now = time.time()
        lines = "".join(pieces).splitlines()
        times = [float(line) for line in lines if "." in line and is_number(line)]
        first, last = times
        written.append((last - first) * 1000)
        received.append((now - first) * 1000)
        lost += LINES - in_order(lines)
    with tempfile.TemporaryDirectory() as folder:
        alone = [by_hand_ms(script, Path(folder, "log")) for _ in range(8)]
    return [
        Figure.of(f"`seq {LINES}` in a job that is tailed: printed", "ms", written),
        Figure.of("first line printed to all received", "ms", received),
        Figure.of("lines lost", "lines", float(lost)),
        Figure.of(f"`seq {LINES} > file` by hand", "ms", alone),
    ]


def in_order(lines: list[str]) -> int:
    """Return how many of the lines 1 to `LINES` are there, each after the one before."""
    wanted = 1
    for line in lines:
        if line == str(wanted):
            wanted += 1
    return wanted - 1


def by_hand_ms(script: str, path: Path) -> float:
    """Return the milliseconds from the first to the last line of a script's output into a file."""
    with path.open("wb") as file:
        subprocess.run(["/bin/sh", "-c", script], stdout=file, check=True)
    lines = path.read_text().splitlines()
    return (float(lines[-1]) - float(lines[0])) * 1000


ROWS = (
    Row("tail", "the delay of a log line to a tailing client", line_delay),
    Row("seq", "a million lines as fast as they can be printed, tailed", million_lines),
)
