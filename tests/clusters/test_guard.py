"""Who may do what, on a real plugin and gateway: web pages in a real browser, names, audit."""

from __future__ import annotations

import asyncio
import collections
import json
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from ray_jobs.dashboard_module.routes import ROUTES

from ray_jobs import JobSubmissionClient
from ray_jobs.errors import Forbidden, TooManyRequests
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.gateway import running_gateway
from tests.waiting import wait_until

from .audits import audit
from .chromium import ATTACKER, SERVER, page_text, running_attacker

ENV_VALUE, URL_PASSWORD = "s3cretvalue", "hunter22word"
#: In an entrypoint, which the job's own log begins with.
IN_COMMAND = "swordfish99"
MAX_SUBMISSION_BYTES = 100_000
#: Of Ray's own logs those in which it names environments in full.
RAYS_OWN_LOGS = ("runtime_env_", "raylet.", "python-core-")
READS = ("list", "job", "log", "tail", "own tail")
LOADS = ("read quietly", "script", "image", "untold script")
#: Installers and Ray's agent try again what can't come here.
ONCE = {"PIP_RETRIES": "0", "RUNTIME_ENV_RETRY_TIMES": "1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    settings = {
        "RAY_JOBS_ALLOWED_HOSTS": SERVER,
        "RAY_JOBS_MAX_SUBMISSION_BYTES": str(MAX_SUBMISSION_BYTES),
    }
    with plugin(enabled=True), running_cluster({**settings, **ONCE}, cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[str]:
    with running_gateway(cluster) as url:
        yield url


@pytest.fixture(scope="module", params=["plugin", "gateway"])
def address(request: pytest.FixtureRequest, cluster: Cluster, gateway: str) -> str:
    return cluster.address if request.param == "plugin" else gateway


@pytest.fixture(scope="module")
def job_id(cluster: Cluster) -> Iterator[str]:
    """A job that runs, and has printed something."""
    with JobSubmissionClient(cluster.address) as client:
        job_id = client.submit_job(
            entrypoint="echo printed; sleep 600",
            runtime_env={"env_vars": {"KEY": ENV_VALUE}},
            metadata={"source": f"https://alice:{URL_PASSWORD}@host/"},
        )
        wait_until(lambda: "printed" in client.get_job_logs(job_id), "its output", 30)
        yield job_id
        client.stop_job(job_id)


def server_of(cluster: Cluster, address: str) -> str:
    return "dashboard" if address == cluster.address else "gateway"


def has_line(cluster: Cluster, server: str, **fields: Any) -> bool:
    return any(fields.items() <= line.items() for line in audit(cluster, server))


def check_nothing_was_done(address: str, job_id: str, mark: Path, known: set[str]) -> None:
    with JobSubmissionClient(address) as client:
        assert set(client.list_jobs()) == known
        assert client.get_job_status(job_id) == "RUNNING"
    assert not mark.exists()
    assert requests.get(f"{address}/api/packages/gcs/evil.zip", timeout=30).status_code == 404


def test_page_of_another_origin(
    cluster: Cluster, address: str, job_id: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    with JobSubmissionClient(address) as client:
        known = set(client.list_jobs())
    begun_ms = time.time() * 1000
    with running_attacker(address) as attacker:
        seen = attacker.attack(target=address, job_id=job_id, mark=mark, rebinding=False)
    for what in (*READS, *LOADS, "submit", "delete", "upload"):
        assert seen[what] == "blocked", what
    # Not by the browser alone.
    expected = {
        "list_jobs": 2,
        "get_job": 1,
        "own_get_job_logs": 4,
        "tail_job_logs": 1,
        "own_tail_job_logs": 1,
    }

    def refused() -> dict[str, int]:
        return collections.Counter(
            line["action"]
            for line in audit(cluster, server_of(cluster, address))
            if line.get("reason") == "foreign_origin" and line["time_ms"] >= begun_ms - 1
        )

    wait_until(lambda: refused() == expected, f"{expected} in the audit", 10)
    if address != cluster.address:
        assert has_line(cluster, "gateway", action="stop_job", job_id=job_id, outcome="refused")
        assert has_line(cluster, "gateway", action="submit_job", reason="browser_write")
    # Those were sent. The plugin's are refused by Ray's dashboard, whose answers the browser hides.
    quiet = "opaque" if address == cluster.address else "blocked"
    assert (seen["submit quietly"], seen["stop"], seen["form"]) == (quiet, quiet, "loaded")
    check_nothing_was_done(address, job_id, mark, known)


def test_page_whose_name_points_here(
    cluster: Cluster, address: str, job_id: str, tmp_path: Path
) -> None:
    """DNS rebinding: for the browser the page is of the server's own origin."""
    mark = tmp_path / "mark"
    target = f"http://{ATTACKER}:{address.rpartition(':')[2]}"
    with JobSubmissionClient(address) as client:
        known = set(client.list_jobs())
    with running_attacker(address) as attacker:
        seen = attacker.attack(target=target, job_id=job_id, mark=mark, rebinding=True)
    for what in READS:
        assert seen[what] == "blocked" or "is none of this server's names" in seen[what], what
        assert ENV_VALUE not in seen[what]
    for what in ("submit", "delete", "upload"):
        assert seen[what] in (403, 405), what
    check_nothing_was_done(address, job_id, mark, known)


def test_the_attack_reads_where_any_name_is_taken(
    cluster: Cluster, job_id: str, tmp_path: Path
) -> None:
    """So the last test shows something; and even then nothing is changed, nor a secret shown."""
    mark = tmp_path / "mark"
    with (
        running_gateway(cluster, "--allowed-host=*") as url,
        running_attacker(url) as attacker,
        JobSubmissionClient(url) as client,
    ):
        known = set(client.list_jobs())
        target = f"http://{ATTACKER}:{url.rpartition(':')[2]}"
        seen = attacker.attack(target=target, job_id=job_id, mark=mark, rebinding=True)
        assert "printed" in seen["log"]
        assert "printed" in seen["tail"] or "Running entrypoint" in seen["tail"]
        assert job_id in seen["list"]
        assert not any(secret in str(seen) for secret in (ENV_VALUE, URL_PASSWORD))
        # What was answered as a page's own is no script all the same; nor is it for other pages.
        assert (seen["script"], seen["untold script"]) == ("blocked", "blocked")
        log = f"/api/ray_jobs/v1/jobs/{job_id}/logs"
        for name in (ATTACKER, SERVER):
            assert (f"http://{name}:{url.rpartition(':')[2]}{log}", 200) in attacker.passed
        assert (seen["submit"], seen["delete"], seen["upload"]) == (405, 405, 405)
        check_nothing_was_done(url, job_id, mark, known)


def test_rays_own_pages(cluster: Cluster, job_id: str) -> None:
    page = page_text(f"{cluster.address}/#/jobs")
    assert job_id in page
    assert "RUNNING" in page
    page = page_text(f"{cluster.address}/#/jobs/{job_id}")
    assert job_id in page
    assert "echo printed" in page
    assert ENV_VALUE not in page


def test_names(cluster: Cluster, address: str) -> None:
    """On every route of ours; Ray's own, on the same port, answer as ever."""

    async def statuses(host: str) -> set[int]:
        async with aiohttp.ClientSession(headers={"Host": host}) as session:
            found = set()
            for route in ROUTES:
                path = route.path.format(job_id="nobody", protocol="gcs", name="no.zip")
                async with session.request(route.method, address + path) as answer:
                    found.add(answer.status)
            return found

    port = address.rpartition(":")[2]
    for host in (f"evil.example:{port}", "localhost.evil.example"):
        assert asyncio.run(statuses(host)) == {403}
    for host in (f"ray.example.com:{port}", "RAY.EXAMPLE.COM", "localhost", "10.9.8.7:1"):
        assert 403 not in asyncio.run(statuses(host))
    others = ("/", "/timezone", "/api/gcs_healthz")
    for path in others if address == cluster.address else ("/", "/api/healthz"):
        answer = requests.get(address + path, headers={"Host": "evil.example"}, timeout=30)
        assert answer.status_code == 200, path
    with (
        JobSubmissionClient(address, headers={"Host": "evil.example"}) as client,
        pytest.raises(Forbidden, match="RAY_JOBS_ALLOWED_HOSTS"),
    ):
        client.list_jobs()


def test_audit(cluster: Cluster, address: str) -> None:
    server = server_of(cluster, address)
    with JobSubmissionClient(address) as client:
        job_id = client.submit_job(
            entrypoint=f"true {IN_COMMAND}", runtime_env={"env_vars": {"KEY": ENV_VALUE}}
        )
        client.wait_until_finish(job_id, timeout=60)
        client.delete_job(job_id)
    requests.delete(f"{address}/api/jobs/nobody", timeout=30)
    for action, outcome in (("submit_job", "done"), ("delete_job", "done")):
        wait_until(
            lambda: has_line(cluster, server, action=action, job_id=job_id, outcome=outcome),  # noqa: B023
            action,
            10,
        )
    wait_until(lambda: has_line(cluster, server, job_id="nobody", status=404), "the failure", 10)
    lines = audit(cluster, server)
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert not any(secret in json.dumps(lines) for secret in (ENV_VALUE, IN_COMMAND))


def test_refusals_and_messages_hold_no_secret(address: str) -> None:
    env: dict[str, Any] = {"env_vars": {"KEY": ENV_VALUE}}
    private = {**env, "working_dir": f"https://alice:{URL_PASSWORD}@127.0.0.1:1/{id(env)}.zip"}
    with JobSubmissionClient(address) as client:
        ids = [
            client.submit_job(entrypoint=f"false {ENV_VALUE}", runtime_env=env),
            client.submit_job(entrypoint="true", runtime_env=private),
        ]
        for job_id in ids:
            info = client.wait_until_finish(job_id, timeout=90)
            assert info.status == "FAILED"
            assert not any(word in str(info.message) for word in (ENV_VALUE, URL_PASSWORD))
    for more in ("", "p" * 2000):  # more than an error may hold
        uri = f"https://alice:{URL_PASSWORD}{more}@host/a.tar"
        wrong: Any = {"entrypoint": "true", "runtime_env": {**env, "working_dir": uri}}
        answer = requests.post(f"{address}/api/jobs/", json=wrong, timeout=30)
        assert answer.status_code == 400
        assert "https://<redacted>@host/a.tar" in answer.text


def test_broken_environments_hold_no_secret(cluster: Cluster) -> None:
    """Installers quote what they were called with; so do Ray's exceptions."""
    index = f"--extra-index-url=https://alice:{URL_PASSWORD}@127.0.0.1:1/"
    fields: list[dict[str, Any]] = [
        {"pip": {"packages": ["nosuch-1"], "pip_install_options": [index, "--no-index"]}},
        {"pip": [f"x @ https://alice:{URL_PASSWORD}@127.0.0.1:1/x-1.0-py3-none-any.whl"]},
    ]
    with JobSubmissionClient(cluster.address) as client:
        job_ids = [
            client.submit_job(
                entrypoint=f"true https://alice:{URL_PASSWORD}@host",
                runtime_env={**each, "env_vars": {"KEY": ENV_VALUE}},
                # A supervisor of the pool, and one of the job's own.
                entrypoint_num_cpus=0.1 * number,
            )
            for number, each in enumerate(fields)
        ]
        for job_id in job_ids:
            info = client.wait_until_finish(job_id, timeout=120)
            assert info.status == "FAILED"
            assert "<redacted>@127.0.0.1:1/" in str(info.message)
            for text in (str(info.message), client.get_job_logs(job_id)):
                assert not any(secret in text for secret in (ENV_VALUE, URL_PASSWORD))
        job_id = client.submit_job(
            entrypoint=f"true {ENV_VALUE} https://alice:{URL_PASSWORD}@host",
            runtime_env={"env_vars": {"KEY": ENV_VALUE}},
        )
        client.wait_until_finish(job_id, timeout=60)
        assert "true <redacted> https://<redacted>@host\n" in client.get_job_logs(job_id)


def test_files_are_their_owners(cluster: Cluster, gateway: str, job_id: str) -> None:
    work_dir = cluster.session_dir / "ray_jobs"
    assert stat.S_IMODE(work_dir.stat().st_mode) == 0o700
    ours = [
        *cluster.logs_dir.glob("job-driver-*"),
        *cluster.logs_dir.glob("ray-jobs-audit-*"),
        *(path for path in work_dir.rglob("*") if path.is_file()),
    ]
    assert len(ours) > 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in ours} == {0o600}
    sockets = [path for path in work_dir.rglob("*") if path.is_socket()]
    assert sockets
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}


def test_redact_always(cluster: Cluster, job_id: str) -> None:
    with running_gateway(cluster, "--redact") as url, JobSubmissionClient(url) as client:
        shown = client.get_job_info(job_id)
        assert shown.runtime_env == {"env_vars": {"KEY": "<redacted>"}}
        assert URL_PASSWORD not in str(client.list_jobs())
    with running_gateway(cluster, env={"RAY_JOBS_REDACT": "always"}) as url:
        assert ENV_VALUE not in requests.get(f"{url}/api/jobs/", timeout=30).text
        assert ENV_VALUE in requests.get(f"{cluster.address}/api/jobs/", timeout=30).text


def test_limits(cluster: Cluster, job_id: str) -> None:
    limits = {"RAY_JOBS_MAX_SUBMISSIONS_PER_S": "0.2", "RAY_JOBS_MAX_SUBMISSION_BYTES": "1000"}
    with running_gateway(cluster, env=limits) as url, JobSubmissionClient(url) as client:
        client._async._retry = type(client._async._retry)(window_s=0.0)
        client.submit_job(entrypoint="true")
        with pytest.raises(TooManyRequests) as caught:
            client.submit_job(entrypoint="true")
        assert 1 <= caught.value.retry_after_s <= 5
        done = subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--address", url, "--", "true"],
            env=cluster.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert "429" in done.stderr
        body = {"entrypoint": "true " + "x" * 1000}
        assert requests.post(f"{url}/api/jobs/", json=body, timeout=30).status_code == 413
        assert client.get_job_status(job_id) == "RUNNING"


def test_limit_that_ray_start_was_given(address: str) -> None:
    """The plugin has no command line: its settings are those of the dashboard's environment."""
    for size, status in ((MAX_SUBMISSION_BYTES // 2, 200), (MAX_SUBMISSION_BYTES, 413)):
        body: Any = {"entrypoint": "true", "metadata": {"note": "x" * size}}
        assert requests.post(f"{address}/api/jobs/", json=body, timeout=30).status_code == status


def test_nothing_that_is_written_holds_a_secret(cluster: Cluster, gateway: str) -> None:
    """After all that was done above, installers' failures among it: the last test here."""
    paths = [*cluster.logs_dir.rglob("*"), *cluster.folder.glob("*.out")]
    texts = {
        str(path): path.read_text(errors="replace")
        for path in paths
        if path.is_file() and not path.name.startswith(RAYS_OWN_LOGS)
    }
    names = {Path(path).name for path in texts}
    assert {"head.out", "dashboard.log", "gcs_server.out"} <= names
    for beginning in ("gateway-", "worker-", "job-driver-", "ray-jobs-audit-"):
        assert any(name.startswith(beginning) for name in names), beginning
    for secret in (ENV_VALUE, URL_PASSWORD):
        assert [path for path, text in texts.items() if secret in text] == []
