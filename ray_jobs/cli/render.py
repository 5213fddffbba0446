"""Jobs as text, tables and JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from ray_jobs.cli.terminal import STATUS_COLOURS, colours, is_terminal, style_status

if TYPE_CHECKING:
    from ray_jobs.models import JobInfo

COLUMNS = ("ID", "STATUS", "SUBMITTED", "DURATION", "ENTRYPOINT")


def job_id_of(job: JobInfo) -> str:
    """Return the id to call a job by: a driver outside the job API has only Ray's own."""
    return job.submission_id or job.job_id or ""


def job_as_json(job: JobInfo) -> str:
    """Return a job as a JSON object, with the field names of the REST API."""
    return json.dumps(msgspec.to_builtins(job), indent=2, ensure_ascii=False)


def jobs_as_json(jobs: Sequence[JobInfo]) -> str:
    """Return jobs as a JSON array."""
    return json.dumps(msgspec.to_builtins(list(jobs)), indent=2, ensure_ascii=False)


def format_seconds(seconds: float) -> str:
    """Return a span of time with its two largest units, as in `3m 20s`."""
    if seconds < 1:
        return f"{max(seconds, 0):.1f}s"
    total = int(seconds)
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    parts: list[str] = []
    for unit, size in units:
        count, total = divmod(total, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def age_of(job: JobInfo, now_ms: float) -> str:
    """Return how long ago a job was submitted."""
    if not job.start_time:
        return "-"
    # Clocks differ: a job from the future is a job of this very moment.
    return f"{format_seconds(max(now_ms - job.start_time, 0) / 1000)} ago"


def duration_of(job: JobInfo, now_ms: float) -> str:
    """Return how long a job took, or has been taking."""
    if not job.start_time or job.status == "PENDING":
        return "-"
    end = job.end_time if job.end_time else now_ms
    return format_seconds(max(end - job.start_time, 0) / 1000)


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    from datetime import datetime

    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "milliseconds")


def job_as_text(job: JobInfo, stream: TextIO) -> str:
    """Return what is known of a job, a line for each thing that is."""
    now_ms = time.time() * 1000
    state = style_status(job.status, stream)
    reserved = {
        name: value
        for name in ("num_cpus", "num_gpus", "memory", "resources", "label_selector")
        if (value := getattr(job, f"entrypoint_{name}", None))
    }
    drivers = f"{job.job_id} (driver of the job)" if job.submission_id and job.job_id else None
    lines: list[tuple[str, Any]] = [
        ("Job", job_id_of(job)),
        ("Type", "driver outside the job API" if job.type == "DRIVER" else None),
        ("Status", state),
        ("Waits for", getattr(job, "pending_reason", None)),
        ("Exit code", job.driver_exit_code),
        ("Error", job.error_type),
        ("Message", job.message),
        ("Entrypoint", job.entrypoint),
        ("Submitted", _time(job.start_time)),
        ("Ended", _time(job.end_time)),
        ("Duration", duration_of(job, now_ms)),
        ("Ray job", drivers),
        ("Node", job.driver_node_id),
        ("Reserved", _compact(reserved)),
        ("Runtime env", _compact(job.runtime_env)),
        ("Metadata", _compact(job.metadata)),
    ]
    return "\n".join(
        f"{name + ':':<13}{_indented(str(value))}"
        for name, value in lines
        if value is not None and value != ""
    )


def _compact(value: dict[str, Any] | None) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None


def _indented(text: str) -> str:
    """Return a text whose further lines stand under its first."""
    return text.rstrip("\n").replace("\n", "\n" + " " * 13)


def print_table(jobs: Sequence[JobInfo]) -> None:
    """Print jobs to stdout: a table on a terminal, else tab-separated columns."""
    now_ms = time.time() * 1000
    rows = [
        (
            job_id_of(job),
            str(job.status),
            age_of(job, now_ms),
            duration_of(job, now_ms),
            # One line for each job, whatever is in its entrypoint.
            " ".join(job.entrypoint.split()) or ("(driver)" if job.type == "DRIVER" else ""),
        )
        for job in jobs
    ]
    if is_terminal(sys.stdout):
        _print_rich(rows)
    else:
        for row in (COLUMNS, *rows):
            sys.stdout.write("\t".join(row) + "\n")


def _print_rich(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(no_color=not colours(sys.stdout), highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    # Only the entrypoint gives way on a narrow terminal: an id that is cut off can't be copied.
    taken = 0
    for index, column in enumerate(COLUMNS[:-1]):
        width = max(len(row[index]) for row in (COLUMNS, *rows))
        table.add_column(column, no_wrap=True, min_width=width)
        taken += width + 2
    table.add_column(COLUMNS[-1], no_wrap=True)
    for row in rows:
        cells = [Text(cell) for cell in row]
        cells[1].stylize(STATUS_COLOURS[row[1]])
        cells[-1].truncate(max(console.width - taken, 10), overflow="ellipsis")
        table.add_row(*cells)
    console.print(table, crop=False)
