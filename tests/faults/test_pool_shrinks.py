"""A pool that ends its spare supervisors while jobs run."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import plugin, running_cluster
from tests.faults.gated import Gate, GatedJob
from tests.faults.judging import judged
from tests.faults.processes import titled
from tests.faults.supervisors import SUPERVISOR
from tests.faults.table import Row, report, rounds, seeded
from tests.waiting import wait_until

HELD = 4
#: So many at once that the pool must grow for them.
BURST = {"each its own": 8, "shared": 40}
#: The burst ends one by one, within this time at most, so that the pool shrinks bit by bit.
BURST_END_S = 1.0


@pytest.fixture(
    scope="module", params=[pytest.param("each its own", marks=pytest.mark.long), "shared"]
)
def client(request: pytest.FixtureRequest) -> Iterator[JobSubmissionClient]:
    env = {"RAY_JOBS_WARM_IDLE_S": "1", "RAY_JOBS_WARM_SUPERVISORS": "1"}
    if request.param == "shared":
        env |= {"RAY_JOBS_SUPERVISION": "dense", "RAY_JOBS_DENSE_JOBS": "8"}
    with (
        plugin(enabled=True),
        running_cluster(env, cpus=2) as cluster,
        JobSubmissionClient(cluster.address) as client,
    ):
        yield client


@rounds()
def test_jobs_do_not_notice(
    request: pytest.FixtureRequest, client: JobSubmissionClient, tmp_path: Path
) -> None:
    supervision = request.node.callspec.params["client"]
    name = f"the pool shrinks ({supervision})"
    rng = seeded(name)
    with Gate(tmp_path / "held") as held, Gate(tmp_path / "burst") as gate:
        jobs, ended = shrink_under_jobs(client, held, gate, BURST[supervision], rng)
        held.open(len(jobs))
        for job in jobs:
            client.wait_until_finish(job.id, timeout=30)
    ends: dict[str, tuple[JobStatus, int | None]] = {
        job.id: (JobStatus.FAILED, job.code) for job in jobs
    }
    report(Row(name, ended, judged(client, ends)))


def shrink_under_jobs(
    client: JobSubmissionClient, held: Gate, gate: Gate, burst: int, rng: random.Random
) -> tuple[list[GatedJob], int]:
    """Have a pool grow for a burst of jobs, and shrink again while others run.

    Returns those that run still, and how many supervisors were ended.
    """
    jobs = held.start(client, HELD // 2)
    others = gate.start(client, burst)
    jobs += held.start(client, HELD // 2)
    before = set(titled(SUPERVISOR))
    for _ in others:
        gate.open(1)
        time.sleep(rng.uniform(0, BURST_END_S / burst))
    for job in others:
        client.wait_until_finish(job.id, timeout=60)
    wait_until(lambda: not before <= set(titled(SUPERVISOR)), "some are ended", 30)
    wait_until(lambda: len(titled(SUPERVISOR)) <= HELD + 2, "all that are spare", 30)
    assert all(job.runs() for job in jobs)
    return jobs, len(before - set(titled(SUPERVISOR)))
