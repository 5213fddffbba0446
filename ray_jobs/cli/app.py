"""The root command: it knows the names of its commands and imports only the one that is called."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from ray_jobs.cli.guard import guarded
from ray_jobs.cli.options import debug_option


class LazyCommand(NamedTuple):
    """Where a command is, and the line that `--help` shows without importing it."""

    module: str
    attribute: str
    short_help: str


#: In the order in which `--help` lists them.
COMMANDS = {
    "submit": LazyCommand("submit", "submit", "Submit a job, follow its log, exit as it does."),
    "run": LazyCommand("submit", "run", "Submit to the cluster at hand, or to a throw-away one."),
    "status": LazyCommand("jobs", "status", "Show one job."),
    "list": LazyCommand("listing", "list_jobs", "List jobs, newest first."),
    "logs": LazyCommand("jobs", "logs", "Print or follow the log of a job."),
    "wait": LazyCommand("jobs", "wait", "Wait for a job to end, exit as it does."),
    "stop": LazyCommand("jobs", "stop", "Stop a job and wait for its end."),
    "delete": LazyCommand("jobs", "delete", "Delete jobs that have ended."),
    "serve": LazyCommand("server", "serve", "Serve the jobs API beside a running cluster."),
    "plugin": LazyCommand("server", "plugin", "Put the jobs API into Ray's own dashboard."),
    "version": LazyCommand("server", "version", "Print the versions of client and server."),
    "completion": LazyCommand("completion", "completion", "Print a shell's completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and guarded all at one place."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        module = importlib.import_module(f"ray_jobs.cli.{lazy.module}")
        command: click.Command = getattr(module, lazy.attribute)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        # click's own version imports every command to ask for its short help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.short_help) for name, lazy in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with guarded(ctx):
            return super().invoke(ctx)


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from ray_jobs.cli.server import client_version

        click.echo(f"ray-jobs {client_version()}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="The address of the job server is --address, else RAY_API_SERVER_ADDRESS, else "
    "RAY_ADDRESS, else http://127.0.0.1:8265.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version of this client.",
)
@debug_option
def cli() -> None:
    """Submit jobs to a Ray cluster, and look after them."""
