"""Limits against floods: 429 with Retry-After, 413 for bodies; and none that a client notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ray_jobs.dashboard_module.guard.clients import counted_as, networks
from ray_jobs.dashboard_module.guard.limits import (
    BURST_S,
    LEAST_PER_S,
    MAX_CLIENTS,
    Rate,
    SharedGauge,
    share_of,
)

from ray_jobs.errors import TooManyRequests
from ray_jobs.models import JobStatus
from tests.archives import sized_zip
from tests.unit.face.fakes import Client, Cluster, record

from .conftest import serving

SUBMISSION = b'{"entrypoint": "true"}'


async def submit(client: Client, body: bytes = SUBMISSION, **headers: str) -> tuple[int, str]:
    async with client.post(
        "/api/jobs/", data=body, headers={name.replace("_", "-"): v for name, v in headers.items()}
    ) as answer:
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
        return answer.status, await answer.text()


def test_rate_refills_and_says_when() -> None:
    now = [0.0]
    rate = Rate(2.0, "submissions", lambda: now[0])
    for _ in range(int(2 * BURST_S)):
        rate.take("a")
    with pytest.raises(TooManyRequests, match="2 submissions a second") as caught:
        rate.take("a")
    assert caught.value.retry_after_s == 1
    rate.take("b")  # others don't notice
    now[0] = 0.5
    rate.take("a")
    with pytest.raises(TooManyRequests):
        rate.take("a")
    now[0] = 1000.0  # no more than a burst is saved up
    for _ in range(int(2 * BURST_S)):
        rate.take("a")
    with pytest.raises(TooManyRequests):
        rate.take("a")


def test_slow_rate_says_how_long() -> None:
    rate = Rate(0.1, "submissions", lambda: 0.0)
    rate.take("a")
    with pytest.raises(TooManyRequests) as caught:
        rate.take("a")
    assert caught.value.retry_after_s == 10


@pytest.mark.parametrize("per_second", [5e-324, 1e-320, 1e-300, 1e-9])
def test_the_slowest_rate_refuses_all_the_same(per_second: float) -> None:
    rate = Rate(per_second, "submissions", lambda: 0.0)
    rate.take("a")
    with pytest.raises(TooManyRequests) as caught:
        rate.take("a")
    assert caught.value.retry_after_s == round(1 / LEAST_PER_S)


def test_clients_are_not_remembered_without_end() -> None:
    rate = Rate(1.0, "submissions", lambda: 0.0)
    for number in range(MAX_CLIENTS + 5):
        rate.take(str(number))
    assert len(rate._left) == MAX_CLIENTS


async def test_submissions_a_second(cluster: Cluster) -> None:
    async with serving(cluster, max_submissions_per_s=0.2) as guarded:
        assert (await submit(guarded.client))[0] == 200
        status, text = await submit(guarded.client)
        assert (status, "0.2 submissions a second" in text) == (429, True)
        async with guarded.client.get("/api/jobs/") as answer:  # reads aren't held
            assert answer.status == 200
        lines = await guarded.audit()
    assert [line["outcome"] for line in lines] == ["done", "refused"]
    assert lines[1]["reason"] == "too_many_requests"
    assert len(cluster.manager.submitted) == 1


async def test_clients_behind_a_proxy_are_told_apart_if_it_is_trusted(cluster: Cluster) -> None:
    [proxies, _] = networks(["127.0.0.0/8"])
    async with serving(
        cluster, max_submissions_per_s=0.2, trusted_proxies=tuple(proxies)
    ) as guarded:
        for address in ("10.0.0.1", "10.0.0.2"):
            assert (await submit(guarded.client, X_Forwarded_For=address))[0] == 200
            assert (await submit(guarded.client, X_Forwarded_For=address))[0] == 429
    async with serving(cluster, max_submissions_per_s=0.2) as guarded:
        assert (await submit(guarded.client, X_Forwarded_For="10.0.0.1"))[0] == 200
        assert (await submit(guarded.client, X_Forwarded_For="10.0.0.2"))[0] == 429


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
        ("", "", "unknown"),
    ],
)
def test_whom_an_address_is_counted_as(address: str, same: str, other: str) -> None:
    """Who has one address of IPv6 has as many as there are limits to get around."""
    assert counted_as(address) == counted_as(same)
    assert counted_as(address) != counted_as(other)


async def test_clients_of_one_network_are_one(cluster: Cluster) -> None:
    async with serving(
        cluster, max_submissions_per_s=0.2, trusted_proxies=tuple(networks(["127.0.0.1"])[0])
    ) as guarded:
        assert (await submit(guarded.client, X_Forwarded_For="2001:db8::1"))[0] == 200
        assert (await submit(guarded.client, X_Forwarded_For="2001:db8::2"))[0] == 429
        lines = await guarded.audit()
    assert [line["address"] for line in lines] == ["2001:db8::1", "2001:db8::2"]


async def test_a_face_that_begins_knows_the_queue(cluster: Cluster) -> None:
    for name in "ab":
        cluster.manager.put(record(name, status=JobStatus.PENDING))
    async with serving(cluster, max_queued_jobs=2) as guarded:
        assert (await submit(guarded.client))[0] == 429
    assert cluster.manager.submitted == []


async def test_jobs_in_the_queue(cluster: Cluster) -> None:
    async with serving(cluster, max_queued_jobs=2) as guarded:
        for _ in range(2):
            assert (await submit(guarded.client))[0] == 200
        status, text = await submit(guarded.client)
        assert (status, "2 jobs in the queue" in text) == (429, True)
        assert len(cluster.manager.submitted) == 2
        submission_id = cluster.manager.submitted[0][0].submission_id or ""
        cluster.manager.end(submission_id, JobStatus.STOPPED)
        async with guarded.client.get(
            f"/api/ray_jobs/v1/jobs/{submission_id}/wait", params={"timeout_s": 5}
        ) as answer:
            assert answer.status == 200
        assert (await submit(guarded.client))[0] == 200
        lines = await guarded.audit()
    [refused] = [line for line in lines if line["outcome"] == "refused"]
    assert (refused["status"], refused["reason"]) == (429, "too_many_requests")


async def test_submissions_on_their_way_count_as_queued(cluster: Cluster) -> None:
    async with serving(cluster, max_queued_jobs=3) as guarded:
        found = await asyncio.gather(*(submit(guarded.client) for _ in range(10)))
    assert sorted(status for status, _ in found) == [200] * 3 + [429] * 7


async def test_requests_at_once(cluster: Cluster) -> None:
    cluster.manager.put(record("mine"))
    cluster.packages.writable.clear()
    async with serving(cluster, max_requests=1, max_streams=1) as guarded:
        client = guarded.client
        first = asyncio.ensure_future(client.put("/api/packages/gcs/x.zip", data=sized_zip(200)))
        await cluster.packages.put_begun.acquire()
        async with client.get("/api/jobs/") as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert "limit of 1 requests at once" in await answer.text()
        path = "/api/ray_jobs/v1/jobs/mine/logs/tail"
        async with client.ws_connect(path), client.get(path) as answer:  # counted apart
            assert answer.status == 429
            assert (await answer.json())["error"]["code"] == "too_many_requests"
        cluster.packages.writable.set()
        async with await first as answer:
            assert answer.status == 200
        async with client.get("/api/jobs/") as answer:
            assert answer.status == 200
        assert guarded.guard._requests.count == 0


@pytest.mark.parametrize(
    ("most", "share", "expected"),
    [(2000, 0.75, 1500), (1, 0.75, 1), (0, 0.75, 0), (100, 0, 0), (100, 1, 0), (100, 0.001, 1)],
)
def test_share_of_one_client(most: int, share: float, expected: int) -> None:
    assert share_of(most, share) == expected


def test_one_client_leaves_places_to_others() -> None:
    gauge = SharedGauge(4, 0.5, "requests at once")
    for _ in range(2):
        gauge.take_for("a")
    with pytest.raises(TooManyRequests, match="This client is at its limit of 2 requests"):
        gauge.take_for("a")
    for client in "bc":
        gauge.take_for(client)
    with pytest.raises(TooManyRequests, match="The server is at its limit of 4 requests"):
        gauge.take_for("d")
    gauge.give_back_for("a")
    gauge.take_for("a")
    for client in "aabc":
        gauge.give_back_for(client)
    assert gauge.count == 0
    assert not gauge._counts  # nobody is remembered


async def test_share_is_of_an_address(cluster: Cluster) -> None:
    cluster.packages.writable.clear()
    proxies, _ = networks(["127.0.0.1"])
    async with serving(
        cluster, max_requests=4, max_client_share=0.5, trusted_proxies=tuple(proxies)
    ) as guarded:
        client = guarded.client

        def of(address: str) -> dict[str, str]:
            return {"X-Forwarded-For": address}

        path, data = "/api/packages/gcs/x.zip", sized_zip(200)
        busy = [
            asyncio.ensure_future(client.put(path, data=data, headers=of("10.0.0.1")))
            for _ in range(2)
        ]
        for _ in busy:
            await cluster.packages.put_begun.acquire()
        async with client.get("/api/jobs/", headers=of("10.0.0.1")) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert "This client is at its limit of 2 requests" in await answer.text()
        async with client.get("/api/jobs/", headers=of("10.0.0.2")) as answer:
            assert answer.status == 200
        cluster.packages.writable.set()
        for each in busy:
            async with await each as answer:
                assert answer.status == 200
        async with client.get("/api/jobs/", headers=of("10.0.0.1")) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_of_a_submission(cluster: Cluster, chunked: bool) -> None:
    body = b'{"entrypoint": "' + b"x" * 1000 + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async with serving(cluster, max_submission_bytes=1000) as guarded:
        async with guarded.client.post("/api/jobs/", data=pieces() if chunked else body) as answer:
            assert answer.status == 413
            assert "1,000 bytes" in await answer.text()
        assert (await submit(guarded.client))[0] == 200
        lines = await guarded.audit()
    assert len(cluster.manager.submitted) == 1
    # Whether the guard sees it by the length that is told, or the handler as it reads.
    assert [line.get("reason") for line in lines] == [None, "too_large"]


async def test_body_where_none_is_expected(cluster: Cluster) -> None:
    cluster.manager.put(record("mine"))
    async with serving(cluster) as guarded:
        for method, path in (("POST", "/api/jobs/mine/stop"), ("GET", "/api/jobs/")):
            async with guarded.client.request(method, path, data=b"x" * 65_537) as answer:
                assert answer.status == 413
        async with guarded.client.post("/api/jobs/mine/stop", data=b"{}") as answer:
            assert answer.status == 200


async def test_big_package_is_refused_by_its_own_words(cluster: Cluster) -> None:
    cluster.packages.max_bytes = 100_000
    async with serving(cluster) as guarded:
        for size, status in ((100_000, 200), (100_001, 413)):
            async with guarded.client.put(
                "/api/packages/gcs/x.zip", data=sized_zip(size)
            ) as answer:
                assert answer.status == status
        lines = await guarded.audit()
    assert list(cluster.packages.stored) == ["gcs://x.zip"]
    assert [line.get("reason") for line in lines] == [None, "package_too_large"]


async def test_defaults_let_a_burst_pass(cluster: Cluster) -> None:
    async with serving(cluster) as guarded:
        found = await asyncio.gather(*(submit(guarded.client) for _ in range(500)))
    assert {status for status, _ in found} == {200}
