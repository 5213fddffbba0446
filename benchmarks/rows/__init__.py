"""All rows, in the order of the table."""

from __future__ import annotations

from benchmarks.bench import Row
from benchmarks.rows import (
    cli,
    driver,
    ending,
    idle,
    log_following,
    log_volume,
    many,
    short_jobs,
    throughput,
)

ALL: tuple[Row, ...] = (
    *short_jobs.ROWS,
    *driver.ROWS,
    *throughput.ROWS,
    *log_following.ROWS,
    *log_volume.ROWS,
    *ending.ROWS,
    *many.READ_ROWS,
    *cli.ROWS,
    *idle.ROWS,
    *many.ROWS,
)
