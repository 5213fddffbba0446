"""The wall clock is stepped by an hour, back and forward, under a workload."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.campaign import Campaign, campaign
from tests.faults.processes import kill_titled, start_waiting_job
from tests.faults.table import rounds
from tests.waiting import wait_until

HOUR_S = 3600.0
CLOCK_VARIABLE = "RAY_JOBS_TEST_CLOCK"
START_TIMEOUT_S = 12.0
#: What a slow machine adds to what is measured here.
SLACK_S = 8.0
#: Python in the whole cluster sees this clock. Ray's own C++ doesn't: it waits for moments of the
#: kernel's clock, which would have to be stepped for the whole machine.
SITECUSTOMIZE = f"""
import os
import time

real_time = time.time


def stepped_time():
    with open(os.environ["{CLOCK_VARIABLE}"]) as file:
        return real_time() + float(file.read())


time.time = stepped_time
time.time_ns = lambda: int(stepped_time() * 1e9)
"""


class WallClock:
    """The wall clock that the Python processes of a cluster see."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "offset"
        self.set(0.0)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.env = {CLOCK_VARIABLE: str(self._path), "PYTHONPATH": str(folder)}

    def set(self, offset_s: float) -> None:
        """Set it so far from the real time."""
        new = self._path.with_suffix(".new")
        new.write_text(str(offset_s))
        os.replace(new, self._path)

    def time(self) -> float:
        return time.time() + float(self._path.read_text())


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def cluster(clock: WallClock) -> Iterator[Cluster]:
    env = {"RAY_JOB_START_TIMEOUT_SECONDS": f"{START_TIMEOUT_S:g}", **clock.env}
    with plugin(enabled=True), running_cluster(env, cpus=2) as cluster:
        with JobSubmissionClient(cluster.address) as client:
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield cluster


@rounds()
async def test_workload(cluster: Cluster, clock: WallClock, tmp_path: Path) -> None:
    began = time.monotonic()

    def step(run: Campaign) -> None:
        clock.set(run.rng.choice((-HOUR_S, 0.0, HOUR_S)))

    # None that waits for resources: its start would time out here.
    kinds = ("quick", "short", "short", "held", "stopped")
    async with campaign("clock stepped by an hour", cluster.address, tmp_path, kinds=kinds) as run:
        await run.inject(lambda: step(run), 8, (0.3, 1.5))
    longest_ms = (time.monotonic() - began) * 1000
    async with aiohttp.ClientSession() as session:
        jobs = await listed(session, cluster.address)
    ids = {each.submission_id for each in run.workload.jobs}
    assert ids <= jobs.keys()
    for each in ids:
        assert 0 <= jobs[each]["end_time"] - jobs[each]["start_time"] <= longest_ms, jobs[each]


async def listed(session: aiohttp.ClientSession, address: str) -> dict[str, dict[str, int]]:
    """Return all jobs, page by page: each on one page, in the order of their start."""
    found: dict[str, dict[str, int]] = {}
    starts: list[int] = []
    params = {"limit": "7"}
    while True:
        async with session.get(f"{address}/api/ray_jobs/v1/jobs", params=params) as answer:
            page = await answer.json()
        for job in page["jobs"]:
            assert job["submission_id"] not in found
            found[job["submission_id"]] = job
            starts.append(job["start_time"])
        if page.get("next_cursor") is None:
            break
        params["cursor"] = page["next_cursor"]
    assert starts == sorted(starts, reverse=True)
    return found


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_durations_and_timeouts(
    cluster: Cluster, clock: WallClock, tmp_path: Path, step_s: float
) -> None:
    with JobSubmissionClient(cluster.address) as client:
        began = time.monotonic()
        wall = clock.time()
        lasting, _ = start_waiting_job(client, tmp_path)
        deaf = client.submit_job(
            entrypoint="trap '' TERM; echo ready; while :; do sleep 0.1; done",
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "2"}},
        )
        waiting = client.submit_job(entrypoint="true", entrypoint_num_cpus=1000)
        submitted = time.monotonic()
        wait_until(lambda: "ready" in client.get_job_logs(deaf), "it runs", 30)
        clock.set(clock.time() - time.time() + step_s)
        kill_titled("ray::JobManager")  # its successor knows the times from the records alone

        later = client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        assert abs((later.start_time or 0) / 1000 - clock.time()) < SLACK_S  # it is stepped
        assert client.get_job_status(waiting) is JobStatus.PENDING

        stop_began = time.monotonic()
        client.stop_job(deaf)
        info = client.wait_until_finish(deaf, timeout=60)
        assert info.status is JobStatus.STOPPED
        assert 2 <= time.monotonic() - stop_began < 2 + SLACK_S

        (tmp_path / "go").touch()
        info = client.wait_until_finish(lasting, timeout=60)
        assert info.start_time is not None
        assert info.end_time is not None
        assert abs(info.start_time / 1000 - wall) < SLACK_S
        took_s = (info.end_time - info.start_time) / 1000
        assert stop_began - submitted <= took_s <= time.monotonic() - began

        info = client.wait_until_finish(waiting, timeout=60)
        waited_s = time.monotonic() - submitted
        assert (info.status, info.error_type) == (
            JobStatus.FAILED,
            "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        )
        assert START_TIMEOUT_S - 1 <= waited_s < START_TIMEOUT_S + SLACK_S
        took_s = ((info.end_time or 0) - (info.start_time or 0)) / 1000
        assert abs(took_s - waited_s) < SLACK_S
