"""Commands about a job that exists: `status`, `logs`, `wait`, `stop`, `delete`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ray_jobs.cli import outcome
from ray_jobs.cli.follow import (
    describe_end,
    say_end,
    say_how_to_go_on,
    write_log,
)
from ray_jobs.cli.interrupts import Detached, Interrupts
from ray_jobs.cli.options import Connection, connection_options, format_option
from ray_jobs.cli.param_types import Number
from ray_jobs.cli.terminal import Spinner, print_error, say
from ray_jobs.errors import (
    LogStreamInterrupted,
    RayJobsError,
    UnsupportedByServer,
    WaitTimeout,
)

if TYPE_CHECKING:
    from ray_jobs.client import JobSubmissionClient
    from ray_jobs.models import JobInfo


def _details(client: JobSubmissionClient, job_id: str) -> JobInfo:
    """Return all that the server knows of a job; Ray's own server knows less."""
    try:
        return client.get_job_details(job_id)
    except UnsupportedByServer:
        return client.get_job_info(job_id)


@click.command()
@click.argument("job_id", metavar="ID")
@format_option("text", "json")
@connection_options
def status(job_id: str, output_format: str, connection: Connection) -> None:
    """Show one job: its state, times, message, and what it was submitted with."""
    from ray_jobs.cli.render import job_as_json, job_as_text

    with connection.client() as client:
        job = _details(client, job_id)
    click.echo(job_as_json(job) if output_format == "json" else job_as_text(job, sys.stdout))


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on with new output until the job ends.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@connection_options
@click.pass_context
def logs(
    ctx: click.Context, job_id: str, follow: bool, tail: int | None, connection: Connection
) -> None:
    """Print the log of a job to stdout.

    The exit code is 0 however the job ended (`wait` gives its outcome).
    """
    with connection.client() as client:
        if not follow:
            write_log([client.get_job_logs(job_id, lines=tail)])
            return
        try:
            with Interrupts(job_id, stop=None):
                write_log(client.tail_job_logs(job_id, lines=tail))
                job = client.wait_until_finish(job_id)
        except Detached:
            say_how_to_go_on(job_id, connection)
            ctx.exit(outcome.INTERRUPTED)
        except LogStreamInterrupted as error:
            # What was asked for, the log, is not whole: not 0, whatever becomes of the job.
            print_error(
                error.message, f"The job goes on: {connection.command('logs', '-f', job_id)}"
            )
            ctx.exit(outcome.ERROR)
        say(describe_end(job, job_id))


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--timeout", type=Number(endless=True), metavar="SECONDS", help="Wait no longer.")
@connection_options
@click.pass_context
def wait(ctx: click.Context, job_id: str, timeout: float | None, connection: Connection) -> None:
    """Wait for a job to end, and exit as `submit` does.

    Exits with 124 when the job has not ended after --timeout.
    """
    with connection.client() as client:
        try:
            with Interrupts(job_id, stop=None), Spinner(f"Waiting for job {job_id}"):
                job = client.wait_until_finish(job_id, timeout=timeout)
        except WaitTimeout as error:
            goes_on = f"It goes on. Follow its log: {connection.command('logs', '-f', job_id)}"
            # Of a server that doesn't answer nobody knows what becomes of its jobs.
            print_error(error.message, None if error.__cause__ else goes_on)
            ctx.exit(outcome.TIMEOUT)
        except Detached:
            say_how_to_go_on(job_id, connection)
            ctx.exit(outcome.INTERRUPTED)
    say_end(job, job_id)
    ctx.exit(outcome.exit_code_of(job))


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--no-wait", is_flag=True, help="Return at once; the job may take a moment to end.")
@connection_options
def stop(job_id: str, no_wait: bool, connection: Connection) -> None:
    """Stop a job and wait for its end. A job that has ended already is left as it is."""
    with connection.client() as client:
        if not client.stop_job(job_id):
            job = client.get_job_info(job_id)
            if job.status.is_terminal():
                click.echo(f"Job {job_id} had ended already: {job.status}.")
                return
        if no_wait:
            click.echo(f"Job {job_id} is being stopped.")
            return
        with Spinner(f"Waiting for job {job_id} to stop"):
            job = client.wait_until_finish(job_id)
    # It may have come to its own end while the order was on its way.
    click.echo(
        f"Job {job_id} stopped."
        if job.status == "STOPPED"
        else f"Job {job_id} ended by itself: {job.status}."
    )


@click.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@connection_options
@click.pass_context
def delete(ctx: click.Context, job_ids: tuple[str, ...], connection: Connection) -> None:
    """Delete jobs that have ended. One that can't be deleted doesn't keep the others."""
    failed = False
    with connection.client() as client:
        for job_id in job_ids:
            try:
                client.delete_job(job_id)
            except RayJobsError as error:
                if len(job_ids) == 1:
                    raise
                failed = True
                print_error(f"{job_id}: {error.message}", error.hint)
            else:
                click.echo(f"Job {job_id} deleted.")
    ctx.exit(outcome.ERROR if failed else outcome.OK)
