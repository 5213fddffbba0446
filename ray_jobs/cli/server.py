"""Commands about the server: `serve`, `plugin`, `version`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli.guard import debug_wanted
from ray_jobs.cli.options import (
    Connection,
    address_from_environment,
    address_option,
    connection_options,
    debug_option,
)
from ray_jobs.errors import INSTALL_HINT, RayJobsError

if TYPE_CHECKING:
    from ray_jobs.client import JobSubmissionClient


def require_ray() -> None:
    """Raise an error that says what to install where there is no ray."""
    # Looked for and not imported: that takes half a second.
    if importlib.util.find_spec("ray") is None:
        raise RayJobsError("This needs Ray, which is not installed here.", hint=INSTALL_HINT)


@click.command()
@click.option(
    "--address", default="auto", show_default=True, help="Address of the cluster's GCS, host:port."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8266, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--insecure", is_flag=True, help="Listen beyond this machine although no token is demanded."
)
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), help="PEM certificate.")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="PEM private key.")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name by which clients may call this server, as a proxy passes it on;"
    " '.example.com' for subdomains too, '*' for any. Repeatable.",
)
@click.option("--redact", is_flag=True, help="Show nobody the values of env_vars.")
@click.option("--handover", hidden=True, help="Of the watcher, to the process that serves.")
@debug_option
@click.pass_context
def serve(
    ctx: click.Context,
    address: str,
    host: str,
    port: int,
    insecure: bool,
    tls_cert: str | None,
    tls_key: str | None,
    allowed_hosts: tuple[str, ...],
    redact: bool,
    handover: str | None,
) -> None:
    """Serve the jobs API beside a running cluster, until interrupted.

    For a cluster whose dashboard can't be restarted or changed. Run it on the head node. A process
    of its own serves; if it dies it is started anew. It ends with the cluster.
    """
    if handover is not None:
        _serve_watched(handover)
        return
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together.")
    require_ray()
    from ray_jobs.cli import watcher

    options = {
        "address": address,
        "host": host,
        "insecure": insecure,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "allowed_hosts": allowed_hosts,
        "redact_always": redact,
    }
    ctx.exit(watcher.watch(host, port, options, debug=debug_wanted(ctx)))


def _serve_watched(handover: str) -> None:
    from ray_jobs.handover import Handover

    try:
        handed = Handover.decoded(handover)
    except ValueError as error:
        raise RayJobsError(
            f"What the watcher of this gateway handed over can't be read: {error}.",
            hint="It may be of another version: start `ray-jobs serve` anew.",
        ) from None
    handed.die_with_watcher()
    from ray_jobs.dashboard_module.gateway import serve as serve_gateway

    listeners = handed.sockets()
    host = listeners[0].getsockname()[0]
    options = options_of(serve_gateway, {"address": "auto", "host": host, **handed.options})
    serve_gateway(listeners, handed.tell_ready, **options)


def options_of(function: Callable[..., object], handed: dict[str, Any]) -> dict[str, Any]:
    """Return those options that a function takes: its watcher may be of another version."""
    taken = inspect.signature(function).parameters
    unknown = sorted(handed.keys() - taken.keys())
    if unknown:
        click.echo(f"Options of another version are left out: {', '.join(unknown)}.", err=True)
    return {name: value for name, value in handed.items() if name in taken}


@click.group()
def plugin() -> None:
    """Put the jobs API into Ray's own dashboard, or take it out again.

    Either takes effect when the cluster is started the next time.
    """


@plugin.command()
@debug_option
def enable() -> None:
    """Make Ray's dashboard on this machine serve the jobs API of ray-jobs."""
    require_ray()
    from ray_jobs.plugin import enable as enable_plugin

    click.echo(enable_plugin())


@plugin.command()
@click.option("--force", is_flag=True, help="Disable it although jobs run.")
@address_option
@debug_option
def disable(force: bool, address: str | None) -> None:
    """Give Ray's dashboard on this machine its own jobs API back."""
    require_ray()
    from ray_jobs.plugin import disable as disable_plugin

    click.echo(disable_plugin(force=force, address=address))


@plugin.command("watch")
@click.option("--gcs-address", metavar="HOST:PORT", help="Of the cluster, where several run here.")
@debug_option
def plugin_watch(gcs_address: str | None) -> None:
    """Start Ray's dashboard anew whenever it dies, until its node is stopped or you interrupt.

    Ray doesn't do that: a dashboard that died stays away. Run it on the head node.
    """
    from ray_jobs.dashboard_watch import watch as watch_dashboard

    watch_dashboard(gcs_address)


@plugin.command("status")
@address_option
@debug_option
def plugin_status(address: str | None) -> None:
    """Say whether the plugin is enabled, and which server answers at an address."""
    require_ray()
    from ray_jobs.plugin import status as describe_plugin

    click.echo(describe_plugin(address=address))


def client_version() -> str:
    """Return the version of this package."""
    try:
        return importlib.metadata.version("ray-jobs")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


@click.command()
@connection_options
def version(connection: Connection) -> None:
    """Print the version of this client, and of the server at --address.

    Without an address, neither given nor in the environment, no server is asked.
    """
    click.echo(f"ray-jobs {client_version()}")
    if not (connection.address or address_from_environment()):
        return
    with connection.client() as client:
        click.echo(f"server {_describe_server(client)}")


def _describe_server(client: JobSubmissionClient) -> str:
    info = client.get_server_info()
    name = f"ray-jobs {info.server_version}" if info.is_ray_jobs else "Ray's own job server"
    return f"{name}, Ray {info.ray_version} ({client.address})"
