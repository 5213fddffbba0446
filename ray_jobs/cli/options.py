"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ray_jobs.cli.guard import DEBUG_KEY
from ray_jobs.cli.param_types import BoolOrPath, Headers

if TYPE_CHECKING:
    from ray_jobs.client import JobSubmissionClient

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

HEADERS_VARIABLE = "RAY_JOB_HEADERS"


@dataclass(frozen=True)
class Connection:
    """How the user said to reach the job server."""

    address: str | None
    verify: bool | str
    headers: dict[str, str] | None
    #: Whether --headers was given: those of the environment are there for the next command too.
    headers_given: bool = False

    def client(self) -> JobSubmissionClient:
        """Return a client for it; to be closed by the caller."""
        # Here, since it takes most of the time that a command takes to start.
        from ray_jobs.client import JobSubmissionClient

        return JobSubmissionClient(self.address, headers=self.headers, verify=self.verify)

    def command(self, *words: str) -> str:
        """Return a `ray-jobs` command line to show to the user, for the same server.

        Without what may be secret: see `left_out`.
        """
        line = ["ray-jobs", *words]
        if self.address is not None:
            line += ["--address", self._shown_address()]
        if self.verify is not True:
            line += ["--verify", str(self.verify).lower() if self.verify is False else self.verify]
        return shlex.join(line)

    def left_out(self) -> str | None:
        """Return what the user has to add to `command`, in words, or None."""
        missing = ["the --headers"] if self.headers_given else []
        if self.address is not None and self._shown_address() != self.address.strip():
            missing.append("the password in the address (***)")
        return f"Left out here, for it may be secret: {' and '.join(missing)}." if missing else None

    def _shown_address(self) -> str:
        from ray_jobs.client.address import redact

        address = (self.address or "").strip()
        if "://" in address:
            return redact(address)
        # Only of a URL is known where the password is.
        return redact(f"http://{address}").removeprefix("http://")


def _remember_debug(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[DEBUG_KEY] = True


def debug_option(function: Decorated) -> Decorated:
    """Add `--debug`, which is for the guard and not for the command."""
    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_debug,
        help="Print the traceback of an error. Same as RAY_JOBS_DEBUG=1.",
    )(function)


def _no_colours(ctx: click.Context, _param: click.Parameter, value: str) -> None:
    if value.lower() in ("false", "never"):
        # The guard, which prints errors, has the root context.
        ctx.color = ctx.find_root().color = False


def _stock_logging_options(function: Decorated) -> Decorated:
    """Accept what every command of Ray's own `ray job` accepts; only the colours mean anything."""
    quiet: dict[str, Any] = {"hidden": True, "expose_value": False}
    function = click.option("-v", "--verbose", count=True, **quiet)(function)
    colours = click.Choice(["auto", "false", "true", "never"], case_sensitive=False)
    function = click.option(
        "--log-color", type=colours, callback=_no_colours, default="auto", **quiet
    )(function)
    styles = click.Choice(["auto", "record", "pretty"], case_sensitive=False)
    return click.option("--log-style", type=styles, **quiet)(function)


def address_option(function: Decorated) -> Decorated:
    """Add `--address` alone."""
    return click.option(
        "--address",
        metavar="URL",
        help="Address of the job server. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, "
        "http://127.0.0.1:8265.",
    )(function)


def connection_options(function: Decorated) -> Decorated:
    """Add the options by which a command reaches the server; it gets them as `connection`."""
    import functools

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        address: str | None,
        verify: bool | str,
        headers: dict[str, str] | None,
        **kwargs: Any,
    ) -> Any:
        source = click.get_current_context().get_parameter_source("headers")
        given = source is click.core.ParameterSource.COMMANDLINE
        # An empty address is an unset one, as in `--address "$ADDRESS"`.
        connection = Connection(address or None, verify, headers, headers_given=given)
        return function(*args, connection=connection, **kwargs)

    wrapped = _stock_logging_options(debug_option(wrapper))
    wrapped = click.option(
        "--headers",
        type=Headers('{"X-Team": "a"}'),
        envvar=HEADERS_VARIABLE,
        show_envvar=True,
        help="HTTP headers to send with every request.",
    )(wrapped)
    wrapped = click.option(
        "--verify",
        type=BoolOrPath(),
        default=True,
        show_default=True,
        help="Whether to verify the server's TLS certificate, or a CA bundle to do it with.",
    )(wrapped)
    return address_option(wrapped)  # type: ignore[return-value]


def format_option(*choices: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds `--format`; the first choice is the default."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(choices),
        default=choices[0],
        show_default=True,
        help="Form of the output.",
    )


def address_from_environment() -> str | None:
    """Return the address that the environment names, or None."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or None
