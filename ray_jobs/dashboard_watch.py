"""Watching Ray's dashboard, which Ray itself doesn't start anew: `ray-jobs plugin watch`.

It is started again as it was started: by its own command line, environment and working folder,
which the kernel tells. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from ray_jobs.errors import RayJobsError
from ray_jobs.handover import runs

_PROGRAM = "ray/dashboard/dashboard.py"
_GCS_OPTION = "--gcs-address="
_SESSION_OPTION = "--session-dir="
#: How often is looked whether dashboard and raylet live: they are nobody's children here.
CHECK_S = 0.5
#: Whoever stops the cluster ends one process after the other: a dead dashboard alone is waited for.
SETTLING_S = 0.5
#: One that ran for so long died of something else than the one before it.
LASTING_S = 30.0
LAST_PAUSE_S = 30.0
END_TIMEOUT_S = 3.0


class DashboardWatchError(RayJobsError):
    """There is no dashboard to watch."""

    code = "dashboard_watch_error"


class Process(NamedTuple):
    """A process as it was started."""

    pid: int
    argv: list[str]
    env: dict[str, str]
    folder: str

    def option(self, name: str) -> str:
        """Return what follows an option (`--name=`), or ""."""
        return next((word[len(name) :] for word in self.argv if word.startswith(name)), "")


def watch(gcs_address: str | None) -> None:
    """Start the dashboard of this machine anew whenever it dies, until its raylet is gone.

    Blocking. SIGTERM and SIGINT end it, and leave the dashboard as it is.

    Args:
        gcs_address: Of the cluster, where there may be several (host:port).

    Raises `DashboardWatchError` when there isn't just one.
    """
    dashboard = find_dashboard(gcs_address)
    raylet = find_raylet(dashboard)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say(f"watching the dashboard (pid {dashboard.pid}).")
    pid, pause_s, since = dashboard.pid, SETTLING_S, time.monotonic()
    child: subprocess.Popen[bytes] | None = None
    try:
        while runs(raylet):
            if runs(pid):
                time.sleep(CHECK_S)
                continue
            lasted = time.monotonic() - since >= LASTING_S
            pause_s = SETTLING_S if child is None or lasted else min(LAST_PAUSE_S, pause_s * 2)
            time.sleep(pause_s)
            if runs(raylet):
                child = start(dashboard)
                pid, since = child.pid, time.monotonic()
                say(f"the dashboard had died; it is started again (pid {pid}).")
        say("the cluster is gone; leaving.")
        if child is not None and child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_TIMEOUT_S)
            child.kill()
    except KeyboardInterrupt:
        return


def start(dashboard: Process) -> subprocess.Popen[bytes]:
    """Start a dashboard as the one that died was started."""
    return subprocess.Popen(
        dashboard.argv,
        env=dashboard.env,
        cwd=dashboard.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # It outlives its watcher.
        start_new_session=True,
    )


def find_dashboard(gcs_address: str | None = None) -> Process:
    """Return the dashboard that runs here. Raises `DashboardWatchError`."""
    found = [
        each
        for each in processes()
        if any(word.endswith(_PROGRAM) for word in each.argv)
        and gcs_address in (None, each.option(_GCS_OPTION))
    ]
    if len(found) != 1:
        there = ", ".join(each.option(_GCS_OPTION) for each in found) or "none"
        raise DashboardWatchError(
            f"There is no single dashboard of Ray to watch here (of the clusters: {there}).",
            hint="Run it on the head node while the dashboard runs; --gcs-address says which.",
        )
    return found[0]


def find_raylet(dashboard: Process) -> int:
    """Return the pid of the raylet of a dashboard's node. Raises `DashboardWatchError`."""
    session = dashboard.option(_SESSION_OPTION)
    for each in processes():
        if os.path.basename(each.argv[0]) == "raylet" and any(session in w for w in each.argv):
            return each.pid
    raise DashboardWatchError("The dashboard's node has no raylet.")


def processes() -> Iterator[Process]:
    """Yield the processes that this user may look at."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                argv = _words(f"/proc/{name}/cmdline")
                if argv:
                    pairs = (w.partition("=") for w in _words(f"/proc/{name}/environ") if "=" in w)
                    env = {key: value for key, _, value in pairs}
                    yield Process(int(name), argv, env, os.readlink(f"/proc/{name}/cwd"))


def _words(path: str) -> list[str]:
    with open(path, "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]


def say(text: str) -> None:
    print(f"ray-jobs: {text}", file=sys.stderr, flush=True)
