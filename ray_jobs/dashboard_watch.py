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

from ray_jobs.dashboard_note import exclusively, read_note, write_note
from ray_jobs.errors import RayJobsError
from ray_jobs.handover import runs, tell
from ray_jobs.node_processes import SESSION_OPTION, Process, dashboards, is_seen, raylets

#: How often is looked whether dashboard and raylet live: they are nobody's children here.
CHECK_S = 0.5
#: Whoever stops the cluster ends one process after the other: a dead dashboard alone is waited for.
SETTLING_S = 0.5
#: One that ran for so long died of something else than the one before it.
LASTING_S = 30.0
LAST_PAUSE_S = 30.0
END_TIMEOUT_S = 3.0
SEEN_RETRY_S = 0.001


class DashboardWatchError(RayJobsError):
    """There is no dashboard to watch."""

    code = "dashboard_watch_error"


def watch(gcs_address: str | None) -> None:
    """Start the dashboard of this machine anew whenever it dies, until its raylet is gone.

    Blocking. SIGTERM and SIGINT end it, and leave the dashboard as it is. One that is dead already
    is started if it was watched before.

    Args:
        gcs_address: Of the cluster, where there may be several (host:port).

    Raises `DashboardWatchError` when there isn't just one.
    """
    dashboard = find_dashboard_or_note(gcs_address)
    raylet = find_raylet(dashboard)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            DashboardWatcher(dashboard, raylet).run()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already


class DashboardWatcher:
    """Starts a dashboard anew.

    Args:
        dashboard: As it was started; its pid is 0 if it is dead.
        raylet: The pid of its node's.
    """

    def __init__(self, dashboard: Process, raylet: int) -> None:
        self._dashboard = dashboard
        self._raylet = raylet
        self._pid = dashboard.pid
        self._since = time.monotonic()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Return once the raylet is gone, and the dashboard that was started here with it."""
        if self._pid:
            self._adopt(self._dashboard)
        pause_s = 0.0
        while runs(self._raylet):
            if self._pid and runs(self._pid):
                time.sleep(CHECK_S)
                continue
            lasted = time.monotonic() - self._since >= LASTING_S
            pause_s = SETTLING_S if lasted else min(LAST_PAUSE_S, max(SETTLING_S, pause_s * 2))
            time.sleep(pause_s)
            if runs(self._raylet):
                self._bring_back()
        say("the cluster is gone; leaving.")
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(END_TIMEOUT_S)
            self._child.kill()

    def _bring_back(self) -> None:
        """Start the dashboard, unless somebody else has."""
        self._since = time.monotonic()
        try:
            with exclusively(self._dashboard.option(SESSION_OPTION)):
                others = dashboards(self._dashboard.gcs_address)
                if others:
                    self._adopt(others[0])
                    return
                self._child = start(self._dashboard)
                until_seen(self._child)
        except OSError as error:
            say(f"the dashboard is dead, and can't be started: {error}.")
            return
        self._pid = self._child.pid
        say(f"the dashboard had died; it is started again (pid {self._pid}).")

    def _adopt(self, dashboard: Process) -> None:
        self._dashboard, self._pid, self._child = dashboard, dashboard.pid, None
        say(f"watching the dashboard (pid {dashboard.pid}).")
        try:
            write_note(dashboard)
        except OSError as error:
            say(f"how it was started can't be noted: {error}.")


def start(dashboard: Process) -> subprocess.Popen[bytes]:
    """Start a dashboard as the one that died was started. Raises OSError."""
    return subprocess.Popen(
        dashboard.argv,
        env=dashboard.env,
        cwd=dashboard.folder if os.path.isdir(dashboard.folder) else "/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # It outlives its watcher.
        start_new_session=True,
    )


def until_seen(dashboard: subprocess.Popen[bytes]) -> None:
    """Wait until other watchers can see a dashboard that was started, or it has ended.

    The kernel shows a command line a moment after the new program has begun.
    """
    while dashboard.poll() is None and not is_seen(dashboard.pid):
        time.sleep(SEEN_RETRY_S)


def find_dashboard(gcs_address: str | None = None) -> Process:
    """Return the dashboard that runs here. Raises `DashboardWatchError`."""
    return the_only(dashboards(gcs_address))


def find_dashboard_or_note(gcs_address: str | None) -> Process:
    """Return the dashboard that runs here, or the one that ran when it was watched the last time.

    Raises `DashboardWatchError`.
    """
    found = dashboards(gcs_address)
    if not found:
        sessions = {each.option(SESSION_OPTION) for each in raylets(gcs_address)}
        notes = [read_note(session) for session in sessions if session]
        found = [note for note in notes if note is not None]
    return the_only(found)


def the_only(found: list[Process]) -> Process:
    if len(found) != 1:
        there = ", ".join(each.gcs_address for each in found) or "none"
        raise DashboardWatchError(
            f"There is no single dashboard of Ray to watch here (of the clusters: {there}).",
            hint="Run it on the head node while the dashboard runs; --gcs-address says which.",
        )
    return found[0]


def find_raylet(dashboard: Process) -> int:
    """Return the pid of the raylet of a dashboard's node. Raises `DashboardWatchError`."""
    session = dashboard.option(SESSION_OPTION)
    for each in raylets():
        if any(session in word for word in each.argv):
            return each.pid
    raise DashboardWatchError("The dashboard's node has no raylet.")


def say(text: str) -> None:
    tell(sys.stderr, f"ray-jobs: {text}")
