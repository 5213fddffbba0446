"""A worker node's end under a job that Ray placed there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.campaign import campaign
from tests.faults.processes import in_session, named, send, zygotes
from tests.faults.table import rounds
from tests.faults.talking import Talker
from tests.waiting import wait_until

#: How soon the GCS declares a node dead whose raylet is silent: ten looks, one a second at the
#: slowest. Frequent ones, so that one is sure to get through between two cuts of a host: else the
#: second adds to what was missed in the first.
NODE_TIMEOUT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "10",
}
#: Ten looks, each as long as its timeout and the pause before it, and the way to the record.
NOTICED_S = 10 * (0.5 + 0.5) + 5.0
LAST_SECOND_S = 1.0
#: A log that comes line by line has come again.
NEWS_S = 10.0
GONE_S = 5.0
#: On the head, meanwhile.
KINDS = ("held", "quick", "short", "stopped")
PAUSE_S = (0.1, 1.5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=True), running_cluster(NODE_TIMEOUT, cpus=1) as cluster:
        with JobSubmissionClient(cluster.address) as client:
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield cluster


def kill_raylet(session: int) -> None:
    for pid in set(in_session(session)) & set(named("raylet")):
        send(pid)


def kill_all_of_ray(session: int) -> None:
    for pid in in_session(session):
        send(pid)


ENDS = {"a worker node's raylet": kill_raylet, "all of a worker node": kill_all_of_ray}


def end_under_a_job(cluster: Cluster, end: Callable[[int], None], pause_s: float) -> float:
    """Start a node, have a job run there, and end the node. Returns how soon that was told."""
    session = cluster.add_node(resources={"doomed": 1})
    with JobSubmissionClient(cluster.address) as client:
        talker = Talker(client, cluster.logs_dir, "doomed")
        talker.wait_until_it_talks()
        time.sleep(pause_s)
        assert talker.processes()
        talker.wait_for_news(NEWS_S)
        ended, clock = time.monotonic(), time.time()
        end(session)
        info = client.wait_until_finish(talker.job_id, timeout=NOTICED_S)
        noticed_s = time.monotonic() - ended
        assert info.status is JobStatus.FAILED
        assert "node" in (info.message or ""), info.message
    assert talker.check_each_once() > clock - LAST_SECOND_S
    wait_until(lambda: not talker.processes(), "its processes are gone", GONE_S)
    cluster.kill_last_node()
    return noticed_s


def test_a_node_that_shares_the_heads_files(cluster: Cluster) -> None:
    """Its end ends its own job, and none of the head's, though it was the first to run one."""
    session = cluster.add_node(resources={"doomed": 1}, shares_files=True)
    for pid in zygotes(str(cluster.folder)):
        send(pid)
    with JobSubmissionClient(cluster.address) as client:
        theirs = Talker(client, cluster.logs_dir, "doomed")
        theirs.wait_until_it_talks()
        ours = client.submit_job(entrypoint="exec sleep 300")
        wait_until(lambda: client.get_job_status(ours) is JobStatus.RUNNING, "it runs", 30)
        kill_raylet(session)
        wait_until(lambda: not theirs.processes(), "its processes are gone", GONE_S)
        info = client.wait_until_finish(theirs.job_id, timeout=NOTICED_S)
        assert info.status is JobStatus.FAILED
        assert "node" in (info.message or ""), info.message
        assert client.get_job_status(ours) is JobStatus.RUNNING
        client.stop_job(ours)
        assert client.wait_until_finish(ours, timeout=30).status is JobStatus.STOPPED
    cluster.kill_last_node()


@rounds()
@pytest.mark.parametrize(
    "fault",
    [
        "a worker node's raylet",
        pytest.param("all of a worker node", marks=pytest.mark.long),
    ],
)
async def test_end_of_a_worker_node(cluster: Cluster, tmp_path: Path, fault: str) -> None:
    async def inject() -> None:
        pause_s = run.rng.uniform(*PAUSE_S)
        run.note(await asyncio.to_thread(end_under_a_job, cluster, ENDS[fault], pause_s))

    async with campaign(f"{fault} killed", cluster.address, tmp_path, kinds=KINDS, rate=2) as run:
        await run.inject(inject, 3, (0.0, 0.1))
