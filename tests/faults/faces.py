"""The processes of the faces, and a cluster in which they may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp

from ray_jobs.dashboard_watch import find_dashboard
from ray_jobs.errors import RayJobsError
from ray_jobs.node_processes import dashboards
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.faults.processes import processes, send
from tests.waiting import wait_until

WATCHER_START_TIMEOUT_S = 30.0
WATCHER_END_TIMEOUT_S = 10.0
SERVING_TIMEOUT_S = 60.0
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=5)
RETRY_S = 0.1


def gateways() -> list[int]:
    """Return the pids of the processes that serve, not those of their watchers."""
    found = []
    for entry in processes():
        with contextlib.suppress(OSError):
            if b"\0--handover\0" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def kill_gateway() -> bool:
    """Kill the gateway. Returns False while there is none."""
    pids = gateways()
    for pid in pids:
        send(pid)
    return bool(pids)


def dashboard_pid(cluster: Cluster) -> int | None:
    """Return the dashboard's pid. None while there is none, or one that was just forked."""
    with contextlib.suppress(RayJobsError):
        return find_dashboard(cluster.gcs_address).pid
    return None


def kill_dashboard(cluster: Cluster) -> bool:
    """Kill the dashboard. Returns False while there is none, or one that was just forked."""
    pid = dashboard_pid(cluster)
    if pid is not None:
        send(pid)
    return pid is not None


def serving(address: str) -> Callable[[int], Awaitable[None]]:
    """Return what waits until a server serves, but for the second injection.

    That one comes while the server starts, if it does: the watchers' pauses grow, and outages of
    two in a row would later be longer than clients are patient.
    """

    async def wait(injected: int) -> None:
        deadline = time.monotonic() + SERVING_TIMEOUT_S
        while injected != 1:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with (
                    aiohttp.ClientSession(timeout=PROBE_TIMEOUT) as session,
                    session.get(f"{address}/api/ray_jobs/v1/server") as response,
                ):
                    if response.status == 200:
                        return
            assert time.monotonic() < deadline, "it doesn't come back"
            await asyncio.sleep(RETRY_S)

    return wait


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
        # Ray's command doesn't know of one that was started anew. It would look for its GCS for a
        # minute, with all of a core.
        for dashboard in dashboards(cluster.gcs_address):
            send(dashboard.pid)


@contextlib.contextmanager
def watched_dashboard(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """Have the dashboard started anew whenever it dies, as the documentation says."""
    log = cluster.folder / f"watch-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        watcher = subprocess.Popen(
            [str(BIN / "ray-jobs"), "plugin", "watch", "--gcs-address", cluster.gcs_address],
            env=cluster.env,
            stderr=output,
        )
    try:
        wait_until(lambda: b"dashboard" in log.read_bytes(), "it watches", WATCHER_START_TIMEOUT_S)
        yield watcher
    finally:
        watcher.terminate()
        assert watcher.wait(WATCHER_END_TIMEOUT_S) == 0, log.read_text()


@contextlib.contextmanager
def lenient_cluster(env: dict[str, str]) -> Iterator[Cluster]:
    """Run a cluster with the plugin, which nobody ends for a dead process.

    Whoever kills its dashboard watches it, each test with another watcher: the pauses of one grow.
    """
    with (
        plugin(enabled=True),
        running_cluster(env, cpus=2) as cluster,
        nobody_ends_it_for_a_dead_process(cluster),
    ):
        yield cluster
