"""The names in `Host`: against DNS rebinding."""

from __future__ import annotations

import socket

import pytest
from ray_jobs.dashboard_module.guard.hosts import HostList, impossible, name_of
from ray_jobs.dashboard_module.routes import ROUTES

from tests.unit.face.fakes import Cluster

from .conftest import any_path, serving

OWN = socket.gethostname()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8266",
        "localhost.:8266",
        "app.localhost:8266",
        "127.0.0.1:8266",
        "127.9.9.9",
        "10.1.2.3:8266",
        "[::1]:8266",
        "[fe80::1]",
        OWN,
        f"{OWN.upper()}:8266",
        OWN.partition(".")[0] + ".local",
        "given.example.com:1",
        "",
        None,
    ],
)
def test_taken(host: str | None) -> None:
    assert HostList(listening="given.example.com", full_name=False).allows(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8266",
        "localhost.evil.example",
        "127.0.0.1.nip.io:8266",
        "notlocalhost",
        "1.2.3.4.5",
        "evil.example:8266:1",
        "user@127.0.0.1",
        "*",
    ],
)
def test_refused(host: str) -> None:
    assert not HostList(["ray.example.com"], listening="0.0.0.0", full_name=False).allows(host)


def test_added_names() -> None:
    hosts = HostList(["Ray.Example.com", ".svc.cluster.local", ""], full_name=False)
    for host in ("ray.example.com", "RAY.example.com.:443", "a.b.svc.cluster.local:1"):
        assert hosts.allows(host), host
    assert hosts.allows("svc.cluster.local")
    for host in ("b.ray.example.com", "evilsvc.cluster.local", "example.com"):
        assert not hosts.allows(host), host
    assert HostList(["*"], full_name=False).allows("anything.example")


def test_a_star_stands_for_subdomains() -> None:
    """As in certificates and in nginx; it matched nothing."""
    hosts = HostList(["*.Example.com:443"], full_name=False)
    for host in ("ray.example.com", "a.b.example.com:1", "example.com"):
        assert hosts.allows(host), host
    for host in ("evilexample.com", "example.com.evil", "*.evil"):
        assert not hosts.allows(host), host


def test_entries_that_are_no_names() -> None:
    names = [
        *("ray.example.com", "Ray_1.a:80", ".svc.cluster.local", "*.a.b", "*", "a.b.", "localhost"),
        *("10.0.0.1", "10.0.0.1:80", "::1", "[::1]:80"),
    ]
    wrong = [
        *(
            "http://a.b",
            "a.b/c",
            "a.*.b",
            "**",
            "*:80",
            "*a.b",
            "10.0.0.0/8",
            "a..b",
            ".",
            "*.",
            "a b",
        ),
        *("a:b", "m\u00fcnchen.example"),
    ]
    assert impossible([*names, *wrong]) == wrong
    # "*." isn't "*".
    assert not HostList(wrong, full_name=False).allows("evil.example")


def test_full_name_is_learnt() -> None:
    hosts = HostList(full_name=False)
    hosts.allows(socket.getfqdn())
    hosts._learn()
    assert hosts.allows(socket.getfqdn())


@pytest.mark.parametrize(
    ("text", "name"),
    [("A.b:80", "a.b"), ("[::1]:80", "::1"), ("::1", "::1"), ("a.b.", "a.b"), (" a ", "a")],
)
def test_name_of(text: str, name: str) -> None:
    assert name_of(text) == name


async def test_every_route_looks_at_it(cluster: Cluster) -> None:
    async with serving(cluster, allowed_hosts=()) as guarded:
        for route in ROUTES:
            async with guarded.client.request(
                route.method, any_path(route), headers={"Host": "evil.example:8266"}
            ) as answer:
                assert answer.status == 403, route
                text = await answer.text()
                assert "RAY_JOBS_ALLOWED_HOSTS" in text
                assert "'evil.example:8266'" in text
                is_json = answer.content_type == "application/json"
                assert is_json == route.path.startswith("/api/ray_jobs/")
        lines = await guarded.audit()
    assert {line["reason"] for line in lines} == {"foreign_host"}
    assert len(lines) == len(ROUTES)
    assert cluster.packages.pinned == []


async def test_plugin_looks_at_it_only_where_names_are_listed(cluster: Cluster) -> None:
    evil = {"Host": "evil.example"}
    for names, status in ((None, 200), (("ray.example.com",), 403), (("*",), 200)):
        async with (
            serving(cluster, allowed_hosts=names) as guarded,
            guarded.client.get("/api/jobs/", headers=evil) as answer,
        ):
            assert answer.status == status
