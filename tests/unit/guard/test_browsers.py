"""Foreign web pages: they change nothing, and read nothing; the server's own pages read."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import WSServerHandshakeError
from ray_jobs.dashboard_module.guard.guard import READING_METHODS, WAITING_ROUTES
from ray_jobs.dashboard_module.routes import ROUTES

from tests.unit.face.fakes import Cluster, record

from .browsers import (
    FOREIGN_READS,
    FOREIGN_WEBSOCKETS,
    FOREIGN_WRITES,
    UNTOLD_READS,
    own_reads,
    own_websockets,
)
from .conftest import any_path, serving

READS = [route for route in ROUTES if route.method in READING_METHODS]
WRITES = [route for route in ROUTES if route.method not in READING_METHODS]
TAILS = [route for route in ROUTES if route.path.endswith("/tail")]


def test_routes_are_known() -> None:
    assert len(WRITES) == 4
    names = {route.name for route in ROUTES}
    assert names >= WAITING_ROUTES
    # Whoever adds a route that holds its requests decides which limit it counts under.
    words = ("tail", "wait", "watch", "event", "stream", "follow")
    assert {name for name in names if any(word in name for word in words)} == WAITING_ROUTES


@pytest.mark.parametrize("how", FOREIGN_WRITES)
async def test_no_page_changes_anything(cluster: Cluster, how: str) -> None:
    cluster.manager.put(record("mine"))
    async with serving(cluster) as guarded:
        for route in WRITES:
            path = any_path(route).replace("nobody", "mine")
            async with guarded.client.request(
                route.method, path, headers=FOREIGN_WRITES[how], data='{"entrypoint": "true"}'
            ) as answer:
                assert answer.status == 405, route
        lines = await guarded.audit()
    assert cluster.manager.submitted == []
    assert cluster.packages.stored == {}
    assert [line["reason"] for line in lines] == ["browser_write"] * len(WRITES)
    assert {line["outcome"] for line in lines} == {"refused"}
    assert [line["action"] for line in lines] == [route.name for route in WRITES]


@pytest.mark.parametrize("how", FOREIGN_READS)
async def test_no_foreign_page_reads(cluster: Cluster, how: str) -> None:
    async with serving(cluster) as guarded:
        for route in READS:
            async with guarded.client.get(any_path(route), headers=FOREIGN_READS[how]) as answer:
                assert answer.status == 403, route
                assert "nobody" not in await answer.text()
        lines = await guarded.audit()
    assert {line["reason"] for line in lines} == {"foreign_origin"}
    assert len(lines) == len(READS)


@pytest.mark.parametrize("route", TAILS, ids=lambda route: route.name)
@pytest.mark.parametrize("how", FOREIGN_WEBSOCKETS)
async def test_no_foreign_page_follows_a_log(cluster: Cluster, route: Any, how: str) -> None:
    cluster.manager.put(record("mine"))
    async with serving(cluster) as guarded:
        path = any_path(route).replace("nobody", "mine")
        with pytest.raises(WSServerHandshakeError) as caught:
            await guarded.client.ws_connect(path, headers=FOREIGN_WEBSOCKETS[how])
    assert caught.value.status == 403


async def test_own_pages_and_links_read(cluster: Cluster) -> None:
    cluster.manager.put(record("mine"))
    async with serving(cluster, allowed_hosts=()) as guarded:
        origin = f"http://127.0.0.1:{guarded.client.port}"
        for how, headers in own_reads(origin).items():
            for path in ("/api/jobs/", "/api/jobs/mine", "/api/ray_jobs/v1/jobs", "/api/version"):
                async with guarded.client.get(path, headers=headers) as answer:
                    assert answer.status == 200, (how, path)
        assert await guarded.audit() == []


@pytest.mark.parametrize("how", UNTOLD_READS)
async def test_browsers_keep_every_answer_from_other_pages(cluster: Cluster, how: str) -> None:
    """They are told to, in answers of any length: the server can't know whose page it is."""
    for name, fields in (("long", {"entrypoint": "x" * 300_000}), ("bound", {"max_log_bytes": 1})):
        cluster.manager.put(record(name, **fields))
        cluster.append(name, b"loss = 0.3\n" * 300_000)
    cluster.manager.put(record("far"))
    cluster.logs.append("far", b"loss = 0.3\n" * 10)
    cluster.packages.stored["gcs://no.zip"] = b""
    statuses: dict[str, set[int]] = {route.name: set() for route in READS}
    async with serving(cluster) as guarded:
        for route in READS:
            for job_id in ("long", "bound", "far", "nobody"):
                for more in ({}, {"Range": "bytes=5-9"}, {"Range": "bytes=9999999-"}):
                    async with guarded.client.get(
                        any_path(route).replace("nobody", job_id),
                        params={"timeout_s": "0"},
                        headers={**UNTOLD_READS[how], **more},
                    ) as answer:
                        where = (route.name, job_id, more, answer.status)
                        assert answer.headers["X-Content-Type-Options"] == "nosniff", where
                        policy = answer.headers["Cross-Origin-Resource-Policy"]
                        assert policy == "same-origin", where
                        statuses[route.name].add(answer.status)
        assert cluster.packages.pinned == []
    tails = {route.name for route in TAILS}
    assert all(200 in found for name, found in statuses.items() if name not in tails), statuses
    assert statuses["own_get_job_logs"] == {200, 206, 404, 416}


async def test_own_pages_follow_logs(cluster: Cluster) -> None:
    cluster.manager.put(record("mine"))
    cluster.append("mine", b"hello\n")
    async with serving(cluster) as guarded:
        for headers in own_websockets(f"http://127.0.0.1:{guarded.client.port}").values():
            async with guarded.client.ws_connect(
                "/api/jobs/mine/logs/tail", headers=headers
            ) as websocket:
                assert (await websocket.receive_str()) == "hello\n"


@pytest.mark.parametrize("origin", ["https://ray.example.com", "http://ray.example.com:81"])
async def test_pages_behind_a_proxy_that_changes_the_host(cluster: Cluster, origin: str) -> None:
    """The browser says nothing but the origin: the proxy's name has to be known."""
    cluster.manager.put(record("mine"))
    headers = {"User-Agent": "Mozilla/5.0", "Origin": origin}
    path = "/api/jobs/mine/logs/tail"
    async with serving(cluster) as guarded:
        with pytest.raises(WSServerHandshakeError):
            await guarded.client.ws_connect(path, headers=headers)
    for names in (("ray.example.com",), (".example.com",)):
        async with (
            serving(cluster, allowed_hosts=names) as guarded,
            guarded.client.ws_connect(path, headers=headers) as websocket,
        ):
            assert not websocket.closed


@pytest.mark.parametrize("site", ["cross-site", "same-site", "odd"])
async def test_what_a_browser_says_of_the_page_counts_before_names(
    cluster: Cluster, site: str
) -> None:
    """A page of the proxy's name, on another port or fetched through a foreign one, is foreign."""
    cluster.manager.put(record("mine"))
    async with serving(cluster, allowed_hosts=("ray.example.com",)) as guarded:
        for origin in ("http://ray.example.com:81", f"http://127.0.0.1:{guarded.client.port}"):
            headers = {"User-Agent": "Mozilla/5.0", "Origin": origin, "Sec-Fetch-Site": site}
            async with guarded.client.get("/api/jobs/", headers=headers) as answer:
                assert answer.status == 403, origin
            with pytest.raises(WSServerHandshakeError):
                await guarded.client.ws_connect("/api/jobs/mine/logs/tail", headers=headers)
            headers["Sec-Fetch-Site"] = "same-origin"
            async with guarded.client.get("/api/jobs/", headers=headers) as answer:
                assert answer.status == 200, origin


async def test_other_ports_of_this_host_are_foreign(cluster: Cluster) -> None:
    cluster.manager.put(record("mine"))
    async with serving(cluster, allowed_hosts=("ray.example.com",)) as guarded:
        port = guarded.client.port
        for origin in (
            f"http://127.0.0.1:{int(port or 0) + 1}",
            f"http://localhost:{port}",
            f"https://127.0.0.1:{int(port or 0) + 1}",
            "http://127.0.0.1",
            "https://127.0.0.1.example.com",
            "chrome-extension://abcdef",
            "http://[::1",
            "null",
            "",
        ):
            async with guarded.client.get("/api/jobs/", headers={"Origin": origin}) as answer:
                assert answer.status == 403, origin


async def test_no_preflight_succeeds(cluster: Cluster) -> None:
    async with serving(cluster) as guarded:
        for route in ROUTES:
            async with guarded.client.options(
                any_path(route),
                headers={
                    "Origin": "http://evil.example",
                    "Access-Control-Request-Method": route.method,
                    "Access-Control-Request-Headers": "content-type",
                },
            ) as answer:
                assert answer.status == 405
                assert not any(name.startswith("Access-Control") for name in answer.headers)
