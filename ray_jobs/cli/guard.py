"""Every command runs inside `guarded`: here an exception becomes words and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ray_jobs.cli import outcome
from ray_jobs.cli.terminal import print_error
from ray_jobs.errors import RayJobsError

DEBUG_VARIABLE = "RAY_JOBS_DEBUG"
#: Where `--debug` leaves its mark; in the metadata that nested contexts share.
DEBUG_KEY = "ray_jobs.debug"


def debug_wanted(ctx: click.Context) -> bool:
    """Return whether the user asked for tracebacks."""
    if ctx.meta.get(DEBUG_KEY):
        return True
    return os.environ.get(DEBUG_VARIABLE, "").lower() not in ("", "0", "false")


@contextmanager
def guarded(ctx: click.Context) -> Iterator[None]:
    """Turn what goes wrong in a command into a message on stderr and an exit code.

    Usage errors and exits are click's own business and pass through.
    """
    try:
        yield
        # Here and not at the interpreter's end, where nobody could handle a broken pipe.
        sys.stdout.flush()
    except click.NoSuchOption as error:
        raise _explained(error) from error
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except BrokenPipeError:
        _forget_stdout()
        ctx.exit(outcome.BROKEN_PIPE)
    except KeyboardInterrupt:
        print_error("interrupted.")
        ctx.exit(outcome.INTERRUPTED)
    except RayJobsError as error:
        _traceback_if(debug_wanted(ctx))
        print_error(error.message, error.hint)
        ctx.exit(outcome.ERROR)
    except Exception as error:  # noqa: BLE001 - the last place that can say it in one line
        debug = debug_wanted(ctx)
        _traceback_if(debug)
        hint = None if debug else f"Run it again with {DEBUG_VARIABLE}=1 to see the traceback."
        print_error(f"unexpected {type(error).__name__}: {error}", hint)
        ctx.exit(outcome.ERROR)


def _traceback_if(wanted: bool) -> None:
    if wanted:
        import traceback

        traceback.print_exc(file=sys.stderr)


def _explained(error: click.NoSuchOption) -> click.UsageError:
    """Say that options of the entrypoint come after `--`, the usual cause with these commands."""
    if error.ctx is None or error.ctx.info_name not in ("submit", "run"):
        return error
    return click.UsageError(
        f"{error.format_message()} If it belongs to the entrypoint, put -- first: "
        f"ray-jobs {error.ctx.info_name} -- python script.py {error.option_name}",
        ctx=error.ctx,
    )


def _forget_stdout() -> None:
    """Point stdout to nowhere, so that the interpreter's last flush does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
