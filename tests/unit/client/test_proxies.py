"""Proxies: a real one (it takes absolute URLs, as the job server of the tests does), and none."""

from __future__ import annotations

import pytest
from yarl import URL

from ray_jobs import errors
from ray_jobs.client.address import parse_address
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.proxies import find_proxy
from tests.unit.client.job_server import JobServer

BEHIND = "http://cluster.invalid:8265"


async def list_jobs(address: str = BEHIND) -> None:
    async with AsyncJobSubmissionClient(address) as client:
        await client.list_jobs()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("form", ["http://user:secret@127.0.0.1:{}", "127.0.0.1:{}"])
async def test_requests_go_through_it(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, variable: str, form: str
) -> None:
    monkeypatch.setenv(variable, form.format(server.port))
    await list_jobs()
    assert server.headers[-1]["Host"] == "cluster.invalid:8265"


async def test_a_log_stream_goes_through_it(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.port}")
    server.answer("GET", "/api/ray_jobs/v1/jobs/a/logs/tail", 404, "Job a does not exist")
    async with AsyncJobSubmissionClient(BEHIND) as client:
        with pytest.raises(errors.JobNotFound):
            [chunk async for chunk in client.tail_job_logs("a")]


async def test_this_machine_needs_none(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    await list_jobs(server.url)


async def test_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
    with pytest.raises(errors.ServerUnreachable, match=r"proxy 127\.0\.0\.1:1 ") as caught:
        await list_jobs()
    assert "secret" not in str(caught.value)
    assert "NO_PROXY" in (caught.value.hint or "")


async def test_one_whose_host_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy.invalid:3128")
    with pytest.raises(errors.ServerUnreachable) as caught:
        await list_jobs()
    assert "The proxy proxy.invalid:3128 on the way to" in str(caught.value)
    assert "the host 'proxy.invalid' can't be found" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["socks5://user:secret@proxy:1080", "socks4a://proxy:1", "http://", "http://proxy:port"]
)
async def test_what_is_no_http_proxy(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ALL_PROXY", text)
    with pytest.raises(errors.InvalidAddress, match="proxy") as caught:
        await list_jobs()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "environment", "expected"),
    [
        ("http://h:1", {}, None),
        ("http://h:1", {"HTTPS_PROXY": "p:1"}, None),
        ("https://h:1", {"HTTPS_PROXY": "p:1", "ALL_PROXY": "q:1"}, "http://p:1"),
        ("http://h:1", {"HTTPS_PROXY": "p:1", "ALL_PROXY": "https://q:1"}, "https://q:1"),
        ("http://h:1", {"ALL_PROXY": "q:1", "NO_PROXY": "h"}, None),
        ("http://h:1", {"ALL_PROXY": "q:1", "NO_PROXY": "h:1"}, None),
        ("http://h:1", {"ALL_PROXY": "q:1", "NO_PROXY": "h:2"}, "http://q:1"),
        ("http://a.h:1", {"ALL_PROXY": "q:1", "NO_PROXY": ".h"}, None),
        ("http://[fd00::1]:1", {"ALL_PROXY": "q:1", "NO_PROXY": "fd00::1"}, None),
        ("http://h:1", {"ALL_PROXY": "q:1", "NO_PROXY": "*"}, None),
        ("http://10.1.2.3:1", {"ALL_PROXY": "q:1", "NO_PROXY": "h, 10.0.0.0/8"}, None),
        ("http://11.1.2.3:1", {"ALL_PROXY": "q:1", "NO_PROXY": "10.0.0.0/8"}, "http://q:1"),
        ("http://h:1", {"ALL_PROXY": "q:1", "NO_PROXY": "10.0.0.0/8,a/b"}, "http://q:1"),
    ],
)
def test_which_one(
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    environment: dict[str, str],
    expected: str | None,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(parse_address(address)) == (URL(expected) if expected else None)
