"""The plugin of Ray's dashboard: enabling, disabling, and telling which server answers."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from ray_jobs.client import JobSubmissionClient
from ray_jobs.errors import INSTALL_HINT, JobNotTerminal, RayJobsError, ServerUnreachable
from ray_jobs.models import JobStatus, JobType
from ray_jobs.node_processes import raylets

FILE_NAME = "ray_jobs_plugin.py"
#: Ray imports this file in the dashboard and in the agent of every node. An exception would take
#: the node down, so it does nothing in an agent, and lets nothing out in the dashboard.
FILE_TEXT = '''\
"""Loads ray-jobs into Ray's dashboard. `ray-jobs plugin enable` wrote this file, and
`ray-jobs plugin disable` removes it. An exception here would take the node down."""
import sys

if "ray.dashboard.head" in sys.modules:
    try:
        from ray_jobs.dashboard_module.head import RayJobsHead  # noqa: F401
    except BaseException:
        import logging

        logging.getLogger(__name__).exception("ray-jobs can't be loaded: Ray's own job API serves.")
'''


class PluginError(RayJobsError):
    """The plugin can't be enabled or disabled."""

    code = "plugin_error"


def plugin_path() -> Path:
    """Return where the plugin's file belongs. Raises `PluginError` when ray isn't installed."""
    spec = importlib.util.find_spec("ray")
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(
            "Ray isn't installed in this environment.",
            hint=INSTALL_HINT,
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "dashboard" / "modules"
    if not folder.is_dir():
        raise PluginError(
            f"This Ray has no dashboard ({folder} is missing).",
            hint='Install it with `pip install "ray[default]"`.',
        )
    return folder / FILE_NAME


def enable() -> str:
    """Write the plugin's file, so that the next `ray start --head` serves our jobs API.

    Returns what was done, for people. Raises `PluginError` where the folder isn't writable.
    """
    path = plugin_path()
    if path.exists() and path.read_text() == FILE_TEXT:
        return f"The plugin is enabled already ({path})."
    try:
        # Written aside and renamed: a dashboard that starts now must not see half a file.
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".ray_jobs_plugin")
        with open(fd, "w") as file:
            file.write(FILE_TEXT)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise PluginError(
            f"Can't write {path}: {error.strerror}.",
            hint="Run the gateway beside the cluster instead: `ray-jobs serve` needs no write"
            " access to Ray's installation.",
        ) from None
    return (
        f"The plugin is enabled ({path}).\n"
        "A cluster that runs already keeps its own job server until its head is restarted:"
        " `ray stop`, then `ray start --head`."
    )


def disable(*, force: bool = False, address: str | None = None) -> str:
    """Remove the plugin's file. Returns what was done, for people.

    Refused while jobs of ours run on the cluster at `address`, unless forced: with
    `JobNotTerminal`, or `PluginError` when a cluster runs here but nobody answers at `address`.
    """
    path = plugin_path()
    if not path.exists():
        return "The plugin is not enabled."
    live = [] if force else _live_jobs(address)
    if live:
        raise JobNotTerminal(
            f"{len(live)} jobs have not finished ({', '.join(live[:5])}).",
            hint="Wait for them, stop them, or disable with --force: they run on, and are listed"
            " by Ray's own server.",
        )
    try:
        path.unlink()
    except OSError as error:
        raise PluginError(f"Can't remove {path}: {error.strerror}.") from None
    return (
        f"The plugin is disabled ({path} is removed).\n"
        "A cluster that runs already keeps our job server until its head is restarted."
    )


def status(*, address: str | None = None) -> str:
    """Return whether the plugin is enabled, and which server answers at `address`."""
    path = plugin_path()
    enabled = path.exists()
    lines = [f"plugin: {'enabled' if enabled else 'not enabled'} ({path})"]
    if enabled and path.read_text() != FILE_TEXT:
        lines.append("  it was written by another version: run `ray-jobs plugin enable` again")
    with JobSubmissionClient(address) as client:
        try:
            server = client.get_server_info()
        except RayJobsError as error:
            lines.append(f"server: {error.message}")
        else:
            kind = f"ray-jobs {server.server_version}" if server.is_ray_jobs else "Ray's own"
            lines.append(f"server: {kind} at {client.address} (Ray {server.ray_version})")
    return "\n".join(lines)


def _live_jobs(address: str | None) -> list[str]:
    with JobSubmissionClient(address) as client:
        try:
            if not client.get_server_info().is_ray_jobs:
                return []
            jobs = client.list_jobs()
        except ServerUnreachable as error:
            if not raylets():
                return []
            raise PluginError(
                f"A cluster runs here, but nobody tells whether its jobs do: {error.message}",
                hint="Give its job server's --address, or disable with --force.",
            ) from None
    live = (JobStatus.PENDING, JobStatus.RUNNING)
    return [
        job_id
        for job_id, job in jobs.items()
        if job.type is JobType.SUBMISSION and job.status in live
    ]
