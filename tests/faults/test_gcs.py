"""The GCS and the Redis behind it die, hang, and come back, under a workload."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.faults.campaign import KINDS, Campaign, campaign
from tests.faults.late_answers import LateAnswers
from tests.faults.processes import send
from tests.faults.redis_cluster import LastingCluster, lasting_cluster
from tests.faults.table import rounds
from tests.waiting import wait_until

#: Ray's own patience with its GCS ends after a minute.
DOWN_S = (0.0, 3.0)
#: Below what lets Ray take a node for dead.
HANGS_S = (2.0, 5.0)
#: Each answer of the Redis comes so late at most, for so long. A call waits for all before it.
LATE_S = 3.0
SLOW_S = (6.0, 9.0)
#: Fewer, and nothing was slow.
LATE_ANSWERS = 20
#: A submission that waited for the GCS is accepted so soon after it is back.
BACK_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LastingCluster]:
    with lasting_cluster() as cluster:
        with JobSubmissionClient(cluster.address) as client:  # manager and pool start with it
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield cluster


class Restart:
    """Kills what the cluster's state is in, and starts it again after a while.

    By threads: what is in the middle of a write to a slow disk takes seconds to die, in which the
    test's own requests would wait too.
    """

    def __init__(self, cluster: LastingCluster) -> None:
        self.gcs = cluster.gcs()
        self._redis = cluster.redis

    async def of_gcs(self, run: Campaign) -> None:
        await asyncio.to_thread(self.gcs.kill)
        await asyncio.sleep(run.rng.uniform(*DOWN_S))
        await asyncio.to_thread(self.gcs.start)
        run.workload.injected_at = time.monotonic()  # it is back

    async def of_redis(self, run: Campaign) -> None:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(run.rng.uniform(*DOWN_S))
        await asyncio.to_thread(self._redis.start)
        await self.of_gcs(run)  # without its Redis it ends by itself, sooner or later


def hang(pid: int) -> Callable[[Campaign], Awaitable[None]]:
    """Return a fault that stops a process for a while, and lets it go on."""

    async def fault(run: Campaign) -> None:
        send(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(run.rng.uniform(*HANGS_S))
        finally:
            send(pid, signal.SIGCONT)
        run.workload.injected_at = time.monotonic()  # it is back

    return fault


def slow_down(answers: LateAnswers) -> Callable[[Campaign], Awaitable[None]]:
    """Return a fault in which the state can be reached, but every answer comes seconds late."""

    async def fault(run: Campaign) -> None:
        before = answers.late
        answers.most_s = LATE_S
        try:
            await asyncio.sleep(run.rng.uniform(*SLOW_S))
        finally:
            answers.most_s = 0.0
        assert answers.late - before > LATE_ANSWERS

    return fault


@rounds()
@pytest.mark.parametrize(
    "fault",
    [
        "GCS killed",
        pytest.param("Redis killed", marks=pytest.mark.long),
        pytest.param("GCS hangs", marks=pytest.mark.long),
        "Redis hangs",
        "KV slow",
    ],
)
async def test_state_is_away(cluster: LastingCluster, tmp_path: Path, fault: str) -> None:
    restart = Restart(cluster)
    inject = {
        "GCS killed": restart.of_gcs,
        "Redis killed": restart.of_redis,
        "GCS hangs": hang(restart.gcs.pid),
        "Redis hangs": hang(cluster.redis.pid),
        "KV slow": slow_down(cluster.redis_answers),
    }[fault]
    name = f"{fault}, then is back"
    kinds = (*KINDS, "placed")
    # A slow KV: late while it is, never wrong.
    within_s = math.inf if fault == "KV slow" else BACK_WITHIN_S
    async with campaign(
        name, cluster.address, tmp_path, kinds=kinds, submitted_within_s=within_s
    ) as run:
        await run.inject(lambda: inject(run), 2, (0.5, 3.0))
    assert restart.gcs.lives()
    if "killed" in fault:
        with JobSubmissionClient(cluster.address) as client:
            await asyncio.to_thread(check_drivers_are_followed, client)


def check_drivers_are_followed(client: JobSubmissionClient) -> None:
    """The face hears of drivers from the GCS, and has to subscribe anew when that was away."""
    job_id = client.submit_job(entrypoint="python -c 'import ray; ray.init(log_to_driver=False)'")
    info = client.wait_until_finish(job_id, timeout=60)
    assert info.status is JobStatus.SUCCEEDED, info.message
    wait_until(lambda: client.get_job_info(job_id).driver_info is not None, "its driver is known")
