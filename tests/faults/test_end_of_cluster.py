"""The end of a whole cluster under running jobs: nothing of them outlives it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs.node_processes import dashboards
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.faults.campaign import SUBMISSIONS_A_SECOND
from tests.faults.faces import gateways, watched_dashboard
from tests.faults.processes import named, of_jobs, parent_of, runs, send
from tests.faults.table import Row, Verdict, report, rounds, seeded
from tests.faults.workload import Workload
from tests.gateway import running_gateway
from tests.waiting import wait_until

#: One of each runs for certain; others come and go.
RUNNING = ("held", "deaf", "forking", "daemons")
KINDS = (*RUNNING, "quick", "quick", "short", "short", "stopped", "family")
#: One supervisor for all: clusters are started again and again here.
DENSE = {"RAY_JOBS_SUPERVISION": "dense"}
GONE_S = 5.0
#: Until Ray's command line has been imported, on a busy machine.
COMMAND_TIMEOUT_S = 30.0
#: Each look goes through all of /proc.
RETRY_S = 0.1
#: Called when the end begins.
Begun = Callable[[], object]


def ray_stop(cluster: Cluster, begun: Begun, *options: str) -> None:
    """Call Ray's command, and tell when it turns to the raylet, with which it begins."""
    with subprocess.Popen(
        [str(BIN / "ray"), "stop", "--verbose", *options],
        env={**cluster.env, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "raylet" in line:
                begun()
    assert process.returncode == 0


def ray_stop_forced(cluster: Cluster, begun: Begun) -> None:
    ray_stop(cluster, begun, "-f")


def kill_raylet(cluster: Cluster, begun: Begun) -> None:
    send(raylet_of(cluster))
    begun()


def raylet_of(cluster: Cluster) -> int:
    [pid] = named("raylet", argument=str(cluster.folder))
    return pid


ENDS = {"ray stop": ray_stop, "ray stop -f": ray_stop_forced, "the head's raylet": kill_raylet}


def left_behind(cluster: Cluster) -> list[str]:
    """Return the processes of jobs, and those of ours that Ray knows nothing of."""
    return of_jobs() + [
        f"{pid}: {name}"
        for name in ("ray-jobs-keeper", "ray-jobs-zygote")
        for pid in named(name, argument=str(cluster.folder))
    ]


async def seconds_until_gone(cluster: Cluster, raylet: int, faces: list[int]) -> float:
    """Wait for the ends of the jobs, and of the raylet, from now on.

    Args:
        faces: Processes of gateways and watchers, which are to be gone with the jobs.

    Returns the seconds that it took.
    """
    began = time.monotonic()
    others = {raylet: "the raylet", **dict.fromkeys(faces, "a gateway, or a watcher")}
    while left := [
        *left_behind(cluster),
        *(f"{pid}: {name}" for pid, name in others.items() if runs(pid)),
    ]:
        assert time.monotonic() < began + GONE_S, left
        await asyncio.sleep(RETRY_S)
    return time.monotonic() - began


async def end_once(
    end: Callable[[Cluster, Begun], None],
    cluster: Cluster,
    folder: Path,
    rng: random.Random,
    watcher: subprocess.Popen[bytes],
) -> tuple[float, Verdict]:
    """End a cluster at a random moment. Returns how long its jobs took to be gone.

    Args:
        watcher: Of the dashboard.
    """
    workload = Workload(cluster.address, folder, rng, KINDS, SUBMISSIONS_A_SECOND)
    submitting = asyncio.ensure_future(workload.submit_for_ever())
    try:
        for stake in [workload.begin(kind) for kind in RUNNING]:
            await workload.pid(stake)
        await asyncio.sleep(rng.uniform(0, 1.5))
        assert len(left_behind(cluster)) > len(RUNNING)
        raylet = raylet_of(cluster)
        faces = [*gateways(), *map(parent_of, gateways()), watcher.pid]
        assert len(faces) == 3
        gcs_address = cluster.gcs_address
        assert dashboards(gcs_address)
        begun, loop = asyncio.Event(), asyncio.get_running_loop()
        ending = asyncio.ensure_future(
            asyncio.to_thread(end, cluster, lambda: loop.call_soon_threadsafe(begun.set))
        )
        await asyncio.wait_for(begun.wait(), COMMAND_TIMEOUT_S)
        gone_s = await seconds_until_gone(cluster, raylet, faces)
        await ending
        # Ray ends its dashboard; the watcher hasn't brought it back, in whichever order they went.
        await asyncio.to_thread(
            wait_until, lambda: not dashboards(gcs_address), "no dashboard is there", GONE_S
        )
        cluster.kill()
        jobs = sum(each.acknowledged for each in workload.jobs)
        # Nobody is left who could tell of lost jobs. Nor is anything started that was about to be.
        verdict = Verdict(jobs, None, workload.started_twice(), left_behind(cluster))
    finally:
        submitting.cancel()
        await workload.close()
    return gone_s, verdict


@pytest.mark.parametrize("fault", ENDS)
@rounds(2)
async def test_end_of_cluster(tmp_path: Path, fault: str) -> None:
    with (
        plugin(enabled=True),
        running_cluster(DENSE, cpus=2) as cluster,
        running_gateway(cluster, ends_by_itself=True),
        watched_dashboard(cluster) as watcher,
    ):
        gone_s, verdict = await end_once(ENDS[fault], cluster, tmp_path, seeded(fault), watcher)
    report(Row(fault, 1, verdict, notice_s=gone_s))
