"""The gateway: beside a cluster with Ray's own server, guarded, and behind a real nginx."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient
from ray_jobs.errors import AuthenticationFailed, Forbidden, RayJobsError
from ray_jobs.models import JobStatus
from tests.addresses import own_address
from tests.cluster import BIN, Cluster, free_port, plugin, running_cluster
from tests.gateway import running_gateway
from tests.waiting import wait_until

from .audits import audit
from .nginx import PASSWORD, USER, basic, running_nginx

CERTIFICATES = Path(__file__).parent.parent / "unit" / "client" / "certificates"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Read by the manager, in the environment of `ray start`. Here and not in test_knobs.py, where
    # a job has no time for an installation.
    env = {"RAY_STREAM_RUNTIME_ENV_LOG_TO_JOB_DRIVER_LOG": "1"}
    with plugin(enabled=False), running_cluster(env, cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    # Of the loopback's addresses the proxy's alone.
    with running_gateway(cluster, env={"RAY_JOBS_TRUSTED_PROXIES": "127.0.0.1"}) as url:
        yield url


def follow(client: JobSubmissionClient) -> None:
    """The main path: submit with files, tail to the end, list, status, delete."""
    job_id = client.submit_job(
        entrypoint="python -c 'import mine; print(mine.WORD)'",
        runtime_env={"working_dir": str(Path(os.environ["PROJECT"]))},
    )
    assert "".join(client.tail_job_logs(job_id)).endswith("mine\n")
    assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
    assert job_id in client.list_jobs()
    assert client.delete_job(job_id) is True


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text("WORD = 'mine'\n")
    monkeypatch.setenv("PROJECT", str(folder))
    return folder


def test_main_path(url: str) -> None:
    with JobSubmissionClient(url) as client:
        assert client.get_server_info().is_ray_jobs is True
        follow(client)


def test_setup_of_the_environment_is_in_the_log(url: str) -> None:
    with JobSubmissionClient(url) as client:
        env = {"pip": ["iniconfig==2.0.0"]}
        job_id = client.submit_job(entrypoint="echo out", runtime_env=env)
        info = client.wait_until_finish(job_id, timeout=120)
        assert info.status is JobStatus.SUCCEEDED, info.message
        setup, _, output = client.get_job_logs(job_id).partition("Running entrypoint for job")
    assert setup.splitlines()[0].endswith("Runtime env is setting up.")
    assert "Successfully installed iniconfig-2.0.0" in setup
    assert output.endswith("\nout\n")


def test_stock_client(url: str) -> None:
    from ray.job_submission import JobSubmissionClient as StockClient

    stock = StockClient(url)
    job_id = stock.submit_job(entrypoint="echo stock")
    wait_until(lambda: stock.get_job_status(job_id).is_terminal(), "its end", 60)
    assert stock.get_job_logs(job_id).endswith("stock\n")


def test_address_is_found_though_clients_have_theirs_in_the_environment(
    cluster: Cluster,
) -> None:
    # RAY_TMPDIR is where Ray looks for the address of the cluster that was started last.
    env = {"RAY_ADDRESS": cluster.address, "RAY_TMPDIR": str(cluster.folder)}
    with (
        running_gateway(cluster, env=env, address="auto") as url,
        JobSubmissionClient(url) as client,
    ):
        follow(client)


@pytest.mark.parametrize("path", ["/api/version", "/api/jobs/", "/api/ray_jobs/v1/server"])
def test_head(url: str, path: str) -> None:
    import requests

    answer = requests.head(url + path, timeout=30)
    assert (answer.status_code, answer.content) == (200, b"")


def test_web_pages_may_not_change_anything(url: str) -> None:
    async def statuses() -> list[int]:
        found = []
        async with aiohttp.ClientSession(headers={"Origin": "http://evil.example"}) as session:
            for method, path in [
                ("POST", "/api/jobs/"),
                ("POST", "/api/jobs/x/stop"),
                ("DELETE", "/api/jobs/x"),
                ("PUT", "/api/packages/gcs/x.zip"),
            ]:
                async with session.request(method, url + path, json={}) as answer:
                    found.append(answer.status)
        return found

    assert set(asyncio.run(statuses())) == {405}


def test_variables_are_kept_from_browsers(url: str) -> None:
    import requests

    with JobSubmissionClient(url) as client:
        env = {"env_vars": {"SECRET": "hush"}}
        job_id = client.submit_job(entrypoint="true", runtime_env=env)
        client.wait_until_finish(job_id, timeout=60)
        assert client.get_job_info(job_id).runtime_env == env
    for browser in ({"User-Agent": "Mozilla/5.0"}, {"User-Agent": "x", "Accept-Language": "en"}):
        for path in (f"/api/jobs/{job_id}", "/api/jobs/"):
            text = requests.get(url + path, headers=browser, timeout=30).text
            assert "SECRET" in text
            assert "hush" not in text


def test_open_addresses_are_refused_without_a_token(cluster: Cluster) -> None:
    """And nobody is connected before that is found out."""
    own = own_address()
    started = []
    for host, reached_by in (("0.0.0.0", own), ("::", "::1"), (own, own)):
        place = (reached_by, free_port())
        words = ["serve", "--address", cluster.gcs_address, "--host", host, "--port", str(place[1])]
        process = subprocess.Popen(
            [str(BIN / "ray-jobs"), *words], env=cluster.env, stderr=subprocess.PIPE, text=True
        )
        started.append((place, process))
    for place, process in started:
        while True:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place, 5).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = process.communicate(timeout=0.1)[1]
                break
        assert process.returncode == 1, place
        assert "without a token" in said
        assert "--insecure" in said
        assert "Traceback" not in said


def test_open_address_is_served_if_it_must_be(cluster: Cluster) -> None:
    with (
        running_gateway(cluster, "--host=0.0.0.0", "--insecure") as url,
        JobSubmissionClient(url.replace("0.0.0.0", own_address())) as client,
    ):
        assert client.get_server_info().is_ray_jobs is True


def test_no_cluster(tmp_path: Path) -> None:
    command = [str(BIN / "ray-jobs"), "serve", "--address", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No Ray cluster" in done.stderr
    assert "Traceback" not in done.stderr


def test_tls(cluster: Cluster) -> None:
    cert, key = CERTIFICATES / "server.pem", CERTIFICATES / "server.key"
    with running_gateway(cluster, f"--tls-cert={cert}", f"--tls-key={key}") as url:
        assert url.startswith("https://")
        with JobSubmissionClient(url, verify=str(cert)) as client:
            follow(client)
        with JobSubmissionClient(url, verify=False) as client:
            follow(client)
        with JobSubmissionClient(url) as client, pytest.raises(RayJobsError, match="certificate"):
            client.list_jobs()
        done = subprocess.run(
            [
                *(str(BIN / "ray"), "job", "submit", "--address", url, "--verify", str(cert)),
                *("--", "echo", "stock through TLS"),
            ],
            env=cluster.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "\nstock through TLS\n" in done.stdout


@pytest.fixture(scope="module")
def nginx(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_nginx(url, tmp_path_factory.mktemp("nginx")) as address:
        yield address


def test_behind_nginx(nginx: str) -> None:
    with JobSubmissionClient(nginx, headers=basic()) as client:
        follow(client)
    with JobSubmissionClient(nginx) as client, pytest.raises((AuthenticationFailed, Forbidden)):
        client.list_jobs()


def test_behind_nginx_with_credentials_in_the_address(nginx: str) -> None:
    with_user = nginx.replace("http://", f"http://{USER}:{PASSWORD.replace(' ', '%20')}@")

    async def run() -> Any:
        async with AsyncJobSubmissionClient(with_user) as client:
            assert PASSWORD.split()[1] not in client.address
            job_id = await client.submit_job(entrypoint="echo through")
            return "".join([chunk async for chunk in client.tail_job_logs(job_id)])

    assert asyncio.run(run()).endswith("through\n")


@pytest.mark.parametrize(
    ("through_nginx", "expected"),
    [(True, {"address": "127.0.0.9", "proxy": "127.0.0.1"}), (False, {"address": "127.0.0.9"})],
)
def test_audit_tells_who_came_through_the_proxy(
    cluster: Cluster, url: str, nginx: str, through_nginx: bool, expected: dict[str, str]
) -> None:
    """And not who says so: the proxy adds its client's address to what that client has sent."""
    address, headers = (nginx, basic()) if through_nginx else (url, {})
    name = f"nobody-{through_nginx}"
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=30, source_address=("127.0.0.9", 0)
    )
    with contextlib.closing(connection):
        forged = {"X-Forwarded-For": "10.1.2.3", **headers}
        connection.request("DELETE", f"{parts.path}/api/jobs/{name}", headers=forged)
        assert connection.getresponse().status == 404

    def told() -> list[dict[str, str]]:
        return [
            {key: line[key] for key in ("address", "proxy") if key in line}
            for line in audit(cluster, "gateway")
            if line.get("job_id") == name
        ]

    wait_until(lambda: bool(told()), "its line")
    assert told() == [expected]


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_stock_client_behind_nginx(nginx: str) -> None:
    from ray.job_submission import JobSubmissionClient as StockClient

    stock = StockClient(nginx, headers=basic())
    job_id = stock.submit_job(entrypoint="echo stock")

    async def tail() -> str:
        return "".join([chunk async for chunk in stock.tail_job_logs(job_id)])

    assert asyncio.run(tail()).endswith("stock\n")
    assert job_id in [job.submission_id for job in stock.list_jobs()]


def test_package_over_the_limit_of_nginx(nginx: str, project: Path) -> None:
    (project / "big.bin").write_bytes(os.urandom(11 * 1024 * 1024))
    with (
        JobSubmissionClient(nginx, headers=basic()) as client,
        pytest.raises(RayJobsError) as caught,
    ):
        client.submit_job(entrypoint="true", runtime_env={"working_dir": str(project)})
    assert caught.value.http_status == 413
    assert "client_max_body_size" in f"{caught.value.message} {caught.value.hint}"


def test_certificates_are_what_they_say() -> None:
    ssl.create_default_context(cafile=str(CERTIFICATES / "server.pem"))
