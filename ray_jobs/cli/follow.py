"""Following a job: what it waits for, its log, its end."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ray_jobs.cli import outcome
from ray_jobs.cli.interrupts import Detached, Interrupts
from ray_jobs.cli.options import Connection
from ray_jobs.cli.terminal import Spinner, print_error, say, style_status
from ray_jobs.errors import LogStreamInterrupted

if TYPE_CHECKING:
    from ray_jobs.client import JobSubmissionClient
    from ray_jobs.models import JobInfo


def write_log(chunks: Iterable[str]) -> None:
    """Write pieces of a log to stdout as they come: always UTF-8, whatever the locale says."""
    stream = sys.stdout.buffer
    for chunk in chunks:
        stream.write(chunk.encode("utf-8", "replace"))
        stream.flush()


def follow_to_the_end(
    client: JobSubmissionClient,
    job_id: str,
    connection: Connection,
    *,
    stop_on_interrupt: bool = False,
    job_outlives_us: bool = True,
) -> int:
    """Stream the log of a job to stdout, and return the exit code that stands for its end."""
    try:
        with Interrupts(job_id, lambda: client.stop_job(job_id), stop_at_once=stop_on_interrupt):
            wait_while_pending(client, job_id)
            log_is_whole = _write_log_until_it_breaks(client, job_id, connection)
            job = client.wait_until_finish(job_id)
    except Detached:
        if job_outlives_us:
            say_how_to_go_on(job_id, connection)
        return outcome.INTERRUPTED
    say_end(job, job_id, log_is_shown=log_is_whole)
    return outcome.exit_code_of(job)


def _write_log_until_it_breaks(
    client: JobSubmissionClient, job_id: str, connection: Connection
) -> bool:
    """Write the log of a job; return whether all of it came. The job's end is another matter."""
    try:
        write_log(client.tail_job_logs(job_id))
    except LogStreamInterrupted as error:
        say(f"{error.message} Waiting for the job's end without it.")
        say(f"  Its log: {connection.command('logs', '-f', job_id)}")
        return False
    return True


def wait_while_pending(client: JobSubmissionClient, job_id: str) -> None:
    """Show what a job waits for until it starts; where stderr is no terminal, do nothing."""
    with Spinner(f"Job {job_id} is pending") as spinner:
        if not spinner.visible:
            return
        for job in client.watch_job(job_id):
            if job.status != "PENDING":
                return
            reason = getattr(job, "pending_reason", None) or job.message
            spinner.update(f"Pending: {reason}" if reason else f"Job {job_id} is pending")


def say_how_to_go_on(job_id: str, connection: Connection) -> None:
    """Say that the job goes on, and how to come back to it or to stop it."""
    say(f"Job {job_id} goes on running.")
    say_commands(job_id, connection)


def say_commands(job_id: str, connection: Connection) -> None:
    """Say how to follow a job, and how to stop it."""
    say(f"  Follow its log: {connection.command('logs', '-f', job_id)}")
    say(f"  Stop it:        {connection.command('stop', job_id)}")
    if note := connection.left_out():
        say(f"  ({note})")


def describe_end(job: JobInfo, job_id: str) -> str:
    """Return how a job ended, in one line."""
    line = f"Job {job_id} {style_status(job.status, sys.stderr)}"
    if job.status == "FAILED" and job.driver_exit_code is not None:
        line += f" (exit code {job.driver_exit_code})"
    return line


def say_end(job: JobInfo, job_id: str, *, log_is_shown: bool = False) -> None:
    """Say on stderr how a job ended; for a failure, its message.

    The message of a failed entrypoint is the end of its log: nothing new where the log was shown.
    """
    if job.status == "FAILED":
        code = job.driver_exit_code
        ending = "" if code is None else f" with exit code {code}"
        message = "." if log_is_shown and code is not None else f": {job.message or 'no reason.'}"
        print_error(f"Job {job_id} failed{ending}{message}")
    else:
        say(describe_end(job, job_id))
