"""The processes of the faces, and a cluster in which they may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

from ray_jobs.dashboard_watch import find_dashboard
from ray_jobs.errors import RayJobsError
from tests.cluster import BIN, Cluster
from tests.faults.processes import processes, send

WATCHER_END_TIMEOUT_S = 10.0


def gateways() -> list[int]:
    """Return the pids of the processes that serve, not those of their watchers."""
    found = []
    for entry in processes():
        with contextlib.suppress(OSError):
            if b"\0--handover\0" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def kill_gateway() -> None:
    for pid in gateways():
        send(pid)


def kill_dashboard(cluster: Cluster) -> None:
    """Kill the dashboard. No-op while there is none, or one that has just been forked."""
    with contextlib.suppress(RayJobsError):
        send(find_dashboard(cluster.gcs_address).pid)


@contextlib.contextmanager
def nobody_ends_it_for_a_dead_process(cluster: Cluster) -> Iterator[None]:
    """Leave a cluster as plain `ray start` does, whose command has ended.

    With `--block` it looks after Ray's processes, and ends all if one was killed.
    """
    [command] = [node.pid for node in cluster.nodes]
    os.kill(command, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(command, signal.SIGCONT)
        cluster.stop()


@contextlib.contextmanager
def watched_dashboard(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """Have the dashboard started anew whenever it dies, as the documentation says."""
    watcher = subprocess.Popen(
        [str(BIN / "ray-jobs"), "plugin", "watch", "--gcs-address", cluster.gcs_address],
        env=cluster.env,
    )
    try:
        yield watcher
    finally:
        watcher.terminate()
        assert watcher.wait(WATCHER_END_TIMEOUT_S) == 0
