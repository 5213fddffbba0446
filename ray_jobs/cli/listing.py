"""`ray-jobs list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import Connection, connection_options, format_option
from ray_jobs.cli.terminal import say
from ray_jobs.errors import UnsupportedByServer

if TYPE_CHECKING:
    from ray_jobs.client import JobSubmissionClient
    from ray_jobs.models import JobInfo

#: Spelt out here, since importing the enum costs each completion of a command line 20 ms.
STATUSES = ("PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")


def _fetch(
    client: JobSubmissionClient, statuses: tuple[str, ...], limit: int | None
) -> list[JobInfo]:
    """Return the jobs that were asked for, newest first."""
    from ray_jobs.models import JobStatus

    wanted = {JobStatus(status) for status in statuses}
    try:
        if wanted or limit is not None:
            jobs = client.list_jobs(status=wanted or None, limit=limit)
        else:
            jobs = client.list_jobs()
    except UnsupportedByServer:
        jobs = client.list_jobs()
    chosen = [job for job in jobs.values() if not wanted or job.status in wanted]
    chosen.sort(key=lambda job: job.start_time or 0, reverse=True)
    return chosen[:limit]


@click.command("list")
@format_option("table", "json")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES, case_sensitive=False),
    multiple=True,
    help="Only jobs in this state; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N jobs.")
@connection_options
def list_jobs(
    output_format: str, statuses: tuple[str, ...], limit: int | None, connection: Connection
) -> None:
    """List jobs, newest first; drivers that were started outside the job API too.

    A table on a terminal, tab-separated columns elsewhere; `--format json` gives all fields.
    """
    from ray_jobs.cli.render import jobs_as_json, print_table

    with connection.client() as client:
        jobs = _fetch(client, statuses, limit)
    if output_format == "json":
        click.echo(jobs_as_json(jobs))
        return
    print_table(jobs)
    if not jobs:
        say("No jobs.")
