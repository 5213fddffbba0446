"""The end of a whole cluster under running jobs: nothing of them outlives it."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.faults.campaign import SUBMISSIONS_A_SECOND
from tests.faults.faces import gateways
from tests.faults.processes import named, of_jobs, parent_of, runs, send
from tests.faults.table import Row, Verdict, report, seeded
from tests.faults.workload import Workload
from tests.gateway import running_gateway

#: One of each runs for certain; others come and go.
RUNNING = ("held", "deaf", "forking", "daemons")
KINDS = (*RUNNING, "quick", "quick", "short", "short", "stopped", "family")
#: One supervisor for all: clusters are started again and again here.
DENSE = {"RAY_JOBS_SUPERVISION": "dense"}
GONE_S = 5.0
#: Each look goes through all of /proc.
RETRY_S = 0.1
RAYLET_END_TIMEOUT_S = 30.0


def ray_stop(cluster: Cluster, *options: str) -> None:
    command = [str(BIN / "ray"), "stop", *options]
    subprocess.run(command, env=cluster.env, stdin=subprocess.DEVNULL, check=True)


def ray_stop_forced(cluster: Cluster) -> None:
    ray_stop(cluster, "-f")


def kill_raylet(cluster: Cluster) -> None:
    send(raylet_of(cluster))


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
    """Wait for the raylet's end, however long Ray takes for it, and for the jobs' ends.

    Args:
        faces: Processes of gateways, which are to be gone with the jobs.

    Returns the seconds from the former to the latter.
    """
    deadline = time.monotonic() + RAYLET_END_TIMEOUT_S
    while runs(raylet):
        assert time.monotonic() < deadline, "the raylet doesn't end"
        await asyncio.sleep(RETRY_S)
    began = time.monotonic()
    while left := [*left_behind(cluster), *(f"{pid}: a gateway" for pid in faces if runs(pid))]:
        assert time.monotonic() < began + GONE_S, left
        await asyncio.sleep(RETRY_S)
    return time.monotonic() - began


async def end_once(
    end: Callable[[Cluster], None], cluster: Cluster, folder: Path, rng: random.Random
) -> tuple[float, Verdict]:
    """End a cluster at a random moment. Returns how long what its jobs ran outlived it."""
    workload = Workload(cluster.address, folder, rng, KINDS, SUBMISSIONS_A_SECOND)
    submitting = asyncio.ensure_future(workload.submit_for_ever())
    try:
        for stake in [workload.begin(kind) for kind in RUNNING]:
            await workload.pid(stake)
        await asyncio.sleep(rng.uniform(0, 1.5))
        assert len(left_behind(cluster)) > len(RUNNING)
        raylet = raylet_of(cluster)
        faces = [*gateways(), *map(parent_of, gateways())]
        assert len(faces) == 2
        ending = asyncio.ensure_future(asyncio.to_thread(end, cluster))
        gone_s = await seconds_until_gone(cluster, raylet, faces)
        await ending
        cluster.kill()
        jobs = sum(each.acknowledged for each in workload.jobs)
        # Nobody is left who could tell of lost jobs. Nor is anything started that was about to be.
        verdict = Verdict(jobs, None, workload.started_twice(), left_behind(cluster))
    finally:
        submitting.cancel()
        await workload.close()
    return gone_s, verdict


@pytest.mark.parametrize("fault", ENDS)
async def test_end_of_cluster(tmp_path: Path, fault: str, fault_round: int) -> None:
    with (
        plugin(enabled=True),
        running_cluster(DENSE, cpus=2) as cluster,
        running_gateway(cluster, ends_by_itself=True),
    ):
        gone_s, verdict = await end_once(ENDS[fault], cluster, tmp_path, seeded(fault))
    report(Row(fault, 1, verdict, notice_s=gone_s))
