"""Where reads come from: the KV without a manager, the replica with one, whatever happens to it."""

from __future__ import annotations

import asyncio

import pytest
from ray_jobs.dashboard_module import follower
from ray_jobs.dashboard_module.face import Face

from ray_jobs.models import JobStatus

from .fakes import Client, Cluster, record


async def statuses(client: Client) -> dict[str, str]:
    async with client.get("/api/jobs/") as answer:
        assert answer.status == 200
        return {job["submission_id"] or job["job_id"]: job["status"] for job in await answer.json()}


async def seen(client: Client, submission_id: str, status: str) -> None:
    """Wait until the face shows a job in a state."""
    while (await statuses(client)).get(submission_id) != status:
        continue


async def test_nothing_is_done_before_the_first_request(
    client: Client, cluster: Cluster, face: Face
) -> None:
    assert (cluster.manager.polls, cluster.store.loads, cluster.drivers.loads) == (0, 0, 0)
    assert face._follower._task is None


async def test_reads_start_no_manager(client: Client, cluster: Cluster) -> None:
    cluster.manager.exists = False
    cluster.store.records = [record("a", foreign=True)]
    assert await statuses(client) == {"a": "RUNNING"}
    async with client.get("/api/jobs/none") as answer:
        assert answer.status == 404
    assert not cluster.manager.exists
    assert cluster.manager.polls == 0
    assert cluster.store.loads == 1, "one look is good for a while"


async def test_many_reads_at_once_look_once(client: Client, cluster: Cluster) -> None:
    cluster.manager.exists = False
    await asyncio.gather(*(statuses(client) for _ in range(20)))
    assert cluster.store.loads == 1


async def test_a_manager_that_comes_is_found(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "STORE_FRESH_S", 0.01)
    cluster.manager.exists = False
    assert await statuses(client) == {}
    cluster.manager.exists = True  # another face has started it
    cluster.manager.put(record("a"))
    await asyncio.wait_for(seen(client, "a", "RUNNING"), 5)


async def test_a_submission_starts_the_manager(client: Client, cluster: Cluster) -> None:
    cluster.manager.exists = False
    cluster.store.records = [record("old", foreign=True)]
    assert await statuses(client) == {"old": "RUNNING"}
    cluster.manager.put(record("old", foreign=True))
    async with client.post("/api/jobs/", json={"entrypoint": "x", "submission_id": "new"}) as _:
        assert cluster.manager.exists
    assert await statuses(client) == {"old": "RUNNING", "new": "PENDING"}
    assert cluster.store.loads == 1


async def test_reading_a_full_list_in_many_pieces(client: Client, cluster: Cluster) -> None:
    cluster.manager.batch_size = 7
    for number in range(40):
        cluster.manager.put(record(f"job{number}", start_time=number))
    assert list(await statuses(client)) == [f"job{number}" for number in range(40)]
    assert cluster.manager.polls >= 6


async def test_reads_go_on_while_the_manager_restarts(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    assert await statuses(client) == {"a": "RUNNING"}
    cluster.manager.reachable = False
    cluster.manager.wake()
    assert await statuses(client) == {"a": "RUNNING"}
    async with client.post("/api/jobs/a/stop") as answer:
        assert answer.status == 503
    cluster.manager.restart()
    cluster.manager.end("a")
    cluster.manager.reachable = True
    await asyncio.wait_for(seen(client, "a", "SUCCEEDED"), 5)
    assert cluster.store.loads == 0


async def test_a_manager_that_is_gone_for_good(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    assert await statuses(client) == {"a": "RUNNING"}
    cluster.store.records = [record("a", status=JobStatus.STOPPED)]
    cluster.manager.exists = False
    cluster.manager.reachable = False
    cluster.manager.wake()
    await asyncio.sleep(0)
    cluster.manager.reachable = True
    await asyncio.wait_for(seen(client, "a", "STOPPED"), 5)
    assert not cluster.manager.exists


async def test_an_unreachable_manager_and_nothing_read_yet(
    client: Client, cluster: Cluster
) -> None:
    cluster.manager.reachable = False
    cluster.store.records = [record("a")]
    assert await statuses(client) == {"a": "RUNNING"}


async def test_a_wait_sees_the_kv_change_without_a_manager(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "STORE_FRESH_S", 0.01)
    monkeypatch.setattr(follower, "STORE_POLL_S", 0.02)
    cluster.manager.exists = False
    cluster.store.records = [record("a", foreign=True)]
    assert await statuses(client) == {"a": "RUNNING"}
    cluster.store.records = [record("a", foreign=True, status=JobStatus.FAILED)]
    async with client.get("/api/ray_jobs/v1/jobs/a/wait") as answer:
        assert (await answer.json())["status"] == "FAILED"


async def test_drivers_come_by_notices(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    assert await statuses(client) == {"a": "RUNNING"}
    await cluster.drivers.subscribed.wait()
    cluster.drivers.announce(cluster.drivers.add("02000000", submission_id="a"))
    cluster.drivers.announce(cluster.drivers.add("03000000"))
    await asyncio.wait_for(seen(client, "03000000", "RUNNING"), 5)
    async with client.get("/api/jobs/a") as answer:
        assert (await answer.json())["job_id"] == "02000000"
    cluster.drivers.announce(cluster.drivers.add("03000000", is_dead=True))
    await asyncio.wait_for(seen(client, "03000000", "SUCCEEDED"), 5)


async def test_a_subscription_that_fails_is_made_anew(client: Client, cluster: Cluster) -> None:
    await statuses(client)
    await cluster.drivers.subscribed.wait()
    cluster.drivers.add("02000000")  # while there is no subscription: only a list tells
    cluster.drivers.break_off()
    await asyncio.wait_for(seen(client, "02000000", "RUNNING"), 5)


async def test_jobs_are_served_though_drivers_are_not(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    cluster.drivers.add("02000000")
    cluster.drivers.failures = [OSError("the GCS is gone")]
    await asyncio.wait_for(seen(client, "02000000", "RUNNING"), 5)
    assert cluster.drivers.failures == []


async def test_closing_twice(face: Face) -> None:
    await face.close()
    await face.close()
