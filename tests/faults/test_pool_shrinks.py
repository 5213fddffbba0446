"""A pool that ends its spare supervisors while jobs run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import plugin, running_cluster
from tests.faults.gated import Gate
from tests.faults.processes import titled
from tests.waiting import wait_until

SUPERVISOR = "ray::JobSupervisor"
HELD = 4
#: So many at once that the pool must grow for them.
BURST = {"each its own": 8, "shared": 40}


@pytest.fixture(params=[pytest.param("each its own", marks=pytest.mark.long), "shared"])
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


def test_jobs_do_not_notice(
    request: pytest.FixtureRequest, client: JobSubmissionClient, tmp_path: Path
) -> None:
    burst = BURST[request.node.callspec.params["client"]]
    with Gate(tmp_path / "held") as held, Gate(tmp_path / "burst") as gate:
        jobs = held.start(client, HELD // 2)
        others = gate.start(client, burst)
        jobs += held.start(client, HELD // 2)
        before = set(titled(SUPERVISOR))
        gate.open(burst)
        for job in others:
            client.wait_until_finish(job.id, timeout=60)
        wait_until(lambda: not before <= set(titled(SUPERVISOR)), "some are ended", 30)
        wait_until(lambda: len(titled(SUPERVISOR)) <= HELD + 2, "all that are spare", 30)
        assert all(job.runs() for job in jobs)
        held.open(len(jobs))
        for job in jobs:
            info = client.wait_until_finish(job.id, timeout=30)
            assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, job.code)
