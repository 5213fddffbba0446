"""Jobs that do nothing: what the server itself takes, one job after another."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.api import since_ms, timed_ms
from benchmarks.bench import Bench, Row
from benchmarks.figures import Figure

PACKAGE_NAME = "_ray_pkg_0123456789abcdef.zip"
#: Small, pure Python, and without dependencies: its installation isn't what is measured.
PIP_PACKAGE = "six==1.16.0"


async def acknowledged(bench: Bench) -> list[Figure]:
    samples = []
    for _ in range(bench.repetitions(ours=100, stock=20)):
        began = time.perf_counter()
        job_id = await bench.api.submit("true")
        samples.append(since_ms(began))
        await bench.api.until(job_id, "SUCCEEDED")
    return [Figure.of("`POST` acknowledged", "ms", samples)]


async def to_the_end(bench: Bench, count: int, entrypoint: str, **fields: Any) -> list[float]:
    """Return the milliseconds from submissions to the sight of SUCCEEDED, the first one left out.

    What only the first job does (a package's unpacking, an environment's installation) is no part
    of it.
    """
    await bench.api.run(entrypoint, **fields)
    return [await timed_ms(lambda: bench.api.run(entrypoint, **fields)) for _ in range(count)]


async def true(bench: Bench) -> list[Figure]:
    samples = await to_the_end(bench, bench.repetitions(ours=100, stock=12), "true")
    return [Figure.of("`true`: submit to SUCCEEDED seen", "ms", samples)]


async def with_env_vars(bench: Bench) -> list[Figure]:
    runtime_env = {"env_vars": {"BENCHMARK": "1"}}
    count = bench.repetitions(ours=60, stock=12)
    samples = await to_the_end(bench, count, 'test "$BENCHMARK" = 1', runtime_env=runtime_env)
    return [Figure.of("the same with `env_vars`", "ms", samples)]


async def with_working_dir(bench: Bench) -> list[Figure]:
    # The server keeps it for longer than this takes, though no job uses it for a moment.
    uri = await bench.api.have_package(PACKAGE_NAME, {"data.txt": "small\n"})
    count = bench.repetitions(ours=40, stock=12)
    samples = await to_the_end(bench, count, "test -e data.txt", runtime_env={"working_dir": uri})
    return [Figure.of("the same with a small `working_dir`, uploaded before", "ms", samples)]


async def with_pip(bench: Bench) -> list[Figure]:
    runtime_env = {"pip": [PIP_PACKAGE]}
    count = bench.repetitions(ours=20, stock=8)
    await bench.api.run("python -c 'import six'", runtime_env=runtime_env)
    samples = await to_the_end(bench, count, "python -c pass", runtime_env=runtime_env)
    return [
        Figure.of("`python -c pass` with the `pip` environment of the job before", "ms", samples)
    ]


ROWS = (
    Row("ack", "POST of a job to its answer", acknowledged),
    Row("true", "submit `true` to SUCCEEDED seen, looking every 5 ms", true),
    Row("env", "the same with env_vars", with_env_vars),
    Row("workdir", "the same with a small working_dir that is uploaded already", with_working_dir),
    Row("pip", "a job with the pip environment of the job before", with_pip),
)
