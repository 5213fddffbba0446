"""The gateway: beside a cluster with Ray's own server, guarded, and behind a real nginx."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient
from ray_jobs.errors import AuthenticationFailed, Forbidden, RayJobsError
from ray_jobs.models import JobStatus
from tests.cluster import BIN, Cluster, free_port, plugin, running_cluster
from tests.gateway import running_gateway
from tests.waiting import wait_until

CERTIFICATES = Path(__file__).parent.parent / "unit" / "client" / "certificates"
USER, PASSWORD = "alice", "open sesame"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=False), running_cluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    with running_gateway(cluster) as url:
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
    browser = {"User-Agent": "Mozilla/5.0"}
    for path in (f"/api/jobs/{job_id}", "/api/jobs/"):
        text = requests.get(url + path, headers=browser, timeout=30).text
        assert "SECRET" in text
        assert "hush" not in text


def test_open_address_is_refused_without_a_token(cluster: Cluster) -> None:
    command = [str(BIN / "ray-jobs"), "serve", "--address", cluster.gcs_address, "--host=0.0.0.0"]
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "without a token" in done.stderr
    assert "--insecure" in done.stderr
    assert "Traceback" not in done.stderr


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


NGINX_CONF = """
daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 10m;
        location /team-a/ray/ {{
            auth_basic "team a";
            auth_basic_user_file {folder}/users;
            proxy_pass {url}/;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Authorization "";
            proxy_buffering off;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    executable = shutil.which("nginx") or "/usr/sbin/nginx"
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, port=port, url=url))
    folder.chmod(0o755)
    log = (folder / "out").open("wb")
    with log:
        process = subprocess.Popen(
            [executable, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "user root;"],
            stderr=log,
        )
    try:
        wait_until((folder / "nginx.pid").exists, (folder / "out").read_text(), 10)
        yield f"http://127.0.0.1:{port}/team-a/ray"
    finally:
        process.terminate()
        process.wait(10)


def basic() -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


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
