"""Ray's token, demanded and not demanded: by plugin and gateway, by every kind of client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from ray_jobs.dashboard_module.routes import ROUTES, Route

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient
from ray_jobs.errors import AuthenticationFailed
from ray_jobs.models import JobStatus
from tests.addresses import own_address
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.fuzz.raw import request, send
from tests.gateway import running_gateway

from .nginx import basic, running_nginx

TOKEN = "0123456789abcdef" * 4
SERVER = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=True), running_cluster(SERVER, cpus=1) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["plugin", "gateway"])
def address(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    if request.param == "plugin":
        yield cluster.address
    else:
        with running_gateway(cluster) as url:
            yield url


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def methods(route: Route) -> list[str]:
    return sorted({route.method, "HEAD", "OPTIONS"})


def refusals(address: str, headers: dict[str, str]) -> dict[str, int]:
    """Return the status of each route and method, and of each WebSocket, by name."""

    async def ask() -> dict[str, int]:
        found = {}
        async with aiohttp.ClientSession(headers=headers) as session:
            for route in ROUTES:
                path = route.path.format(job_id="x", protocol="gcs", name="x.zip")
                for method in methods(route):
                    async with session.request(method, address + path) as answer:
                        found[f"{route.name} {method}"] = answer.status
                if path.endswith("/tail"):
                    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                        await session.ws_connect(address + path)
                    found[f"{route.name} (WebSocket)"] = caught.value.status
        return found

    return asyncio.run(ask())


def test_gateway_of_a_cluster_that_found_a_token(home: Path) -> None:
    """No mode is set: `ray start` demands the token that it finds, and so does the gateway."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    with (
        plugin(enabled=False),
        running_cluster({"HOME": str(home)}, cpus=1, without=["RAY_AUTH_MODE"]) as cluster,
        running_gateway(cluster) as url,
        JobSubmissionClient(url) as client,
    ):
        assert set(refusals(url, {}).values()) == {401}
        client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)


def test_no_token_is_refused_everywhere(address: str) -> None:
    found = refusals(address, {})
    assert len(found) == 3 * len(ROUTES) + 2
    assert set(found.values()) == {401}, found
    with JobSubmissionClient(address) as client, pytest.raises(AuthenticationFailed) as caught:
        client.submit_job(entrypoint="true")
    assert "RAY_AUTH_TOKEN" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer " + "f" * 64},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}0"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic " + "f" * 64},
        {"X-Ray-Authorization": "Bearer " + "f" * 64},
        {"Authorization": "Bearer x", "X-Ray-Authorization": f"Bearer {TOKEN}"},
        {"Cookie": "ray-authentication-token=" + "f" * 64},
    ],
    ids=str,
)
def test_wrong_token_is_refused_everywhere(address: str, headers: dict[str, str]) -> None:
    found = refusals(address, headers)
    assert set(found.values()) == {403}, found


@pytest.mark.parametrize("address", ["gateway"], indirect=True)
def test_a_token_that_is_no_text_is_refused(cluster: Cluster, address: str) -> None:
    """Ray's own dashboard, the plugin's host, answers it with a 500."""
    port = urlsplit(address).port or 0
    for route in ROUTES:
        path = route.path.format(job_id="x", protocol="gcs", name="x.zip")
        for header in ("Authorization", "X-Ray-Authorization"):
            answer = request(port, route.method, path, {header: "Bearer \xff"})
            assert answer.status == 403, (route, header)
    assert "Traceback" not in cluster.output()


def test_open_address_is_served_with_a_token(cluster: Cluster) -> None:
    with running_gateway(cluster, "--host=0.0.0.0") as url:
        there = url.replace("0.0.0.0", own_address())
        assert set(refusals(there, {}).values()) == {401}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with JobSubmissionClient(there, headers=headers) as client:
            assert client.get_server_info().is_ray_jobs is True


def test_audit_names_the_token_and_never_shows_it(cluster: Cluster) -> None:
    with running_gateway(cluster) as url:
        token = {"Authorization": f"Bearer {TOKEN}"}
        for headers in (token, {"Authorization": "Bearer " + "f" * 64}, {}):
            with (
                JobSubmissionClient(url, headers={"User-Agent": "audited", **headers}) as client,
                contextlib.suppress(AuthenticationFailed),
            ):
                client.submit_job(entrypoint="true", submission_id="audited")
    # The gateway has ended, so that all is written.
    paths = sorted(cluster.logs_dir.glob("ray-jobs-audit-gateway*.jsonl"), reverse=True)
    text = "".join(path.read_text() for path in paths)
    lines = [
        line for line in map(json.loads, text.splitlines()) if line.get("user_agent") == "audited"
    ]
    shown = [
        tuple(line.get(name) for name in ("action", "token", "status", "reason")) for line in lines
    ]
    assert shown == [
        ("submit_job", "cluster", 200, None),
        ("authenticate", None, 403, "invalid_token"),
        ("authenticate", None, 401, "no_token"),
    ]
    assert TOKEN not in text
    assert "f" * 64 not in text


def test_wrong_token_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with JobSubmissionClient(address) as client, pytest.raises(AuthenticationFailed):
        client.list_jobs()


@pytest.mark.parametrize("place", ["variable", "path", "home"])
def test_token_is_found_where_ray_finds_it(
    address: str, place: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    elif place == "path":
        (home / "elsewhere").write_text(TOKEN + "\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "elsewhere"))
    else:
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(TOKEN)

    async def run() -> str:
        async with AsyncJobSubmissionClient(address) as client:
            job_id = await client.submit_job(entrypoint="echo let in")
            return "".join([chunk async for chunk in client.tail_job_logs(job_id)])

    assert asyncio.run(run()).endswith("let in\n")


def test_other_header_beside_basic_auth(address: str) -> None:
    headers = {"X-Ray-Authorization": f"Bearer {TOKEN}"}
    with JobSubmissionClient(address, headers=headers) as client:
        assert client.list_jobs() is not None


def test_basic_auth_of_nginx_and_rays_token(address: str, tmp_path: Path) -> None:
    token = {"X-Ray-Authorization": f"Bearer {TOKEN}"}
    with running_nginx(address, tmp_path) as behind_nginx:
        with JobSubmissionClient(behind_nginx, headers={**basic(), **token}) as client:
            job_id = client.submit_job(entrypoint="echo through both")
            assert "".join(client.tail_job_logs(job_id)).endswith("through both\n")
        for headers in (basic(), token):
            with (
                JobSubmissionClient(behind_nginx, headers=headers) as client,
                pytest.raises(AuthenticationFailed),
            ):
                client.list_jobs()


def test_stock_command_with_the_token_in_its_headers(cluster: Cluster, address: str) -> None:
    env = {**cluster.env, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address}
    del env["RAY_AUTH_TOKEN"]

    def run(*options: str) -> Any:
        words = [str(BIN / "ray"), "job", "submit", *options, "--", "echo", "by header"]
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)

    headers = json.dumps({"X-Ray-Authorization": f"Bearer {TOKEN}"})
    assert "\nby header\n" in run("--headers", headers).stdout
    refused = run()
    assert refused.returncode != 0
    assert "by header" not in refused.stdout


def test_stock_command(cluster: Cluster, address: str) -> None:
    def run(env: dict[str, str]) -> Any:
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--", "echo", "by ray"],
            env={**cluster.env, **env, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert "by ray" in run({}).stdout
    refused = run({"RAY_AUTH_TOKEN": "0" * 64})
    assert refused.returncode != 0


def test_driver_in_a_job_may_connect(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with JobSubmissionClient(address) as client:
        code = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 42).remote()))"
        job_id = client.submit_job(entrypoint=f'python -c "{code}"')
        info = client.wait_until_finish(job_id, timeout=60)
        assert info.status is JobStatus.SUCCEEDED, client.get_job_logs(job_id)


def test_nothing_that_is_written_holds_the_token(cluster: Cluster) -> None:
    """After all that was done with it: the last test here."""
    with running_gateway(cluster) as url:
        port = urlsplit(url).port or 0
        send(port, f"GE T /{TOKEN} HTTP/9.9\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert request(port, "GET", f"/api/jobs/{TOKEN}", bearer).status == 404
        assert request(port, "POST", "/api/jobs/", bearer, b"{").status == 400
    paths = [path for path in cluster.logs_dir.rglob("*") if path.is_file()]
    paths += cluster.folder.glob("*.out")
    assert {"head.out", "dashboard.log"} <= {path.name for path in paths}
    assert [path.name for path in paths if TOKEN in path.read_text(errors="replace")] == []
