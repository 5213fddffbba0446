"""Bad input on a real cluster: through the plugin and the gateway, the manager, and Ray's GCS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from hypothesis import HealthCheck, settings

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus
from ray_jobs.validation import MAX_ARGUMENT_BYTES
from tests.archives import MIB, inflating_zip, zip_of, zip_of_size
from tests.cluster import Cluster, plugin, running_cluster
from tests.clusters.conftest import no_settings_of_the_developer
from tests.faults.processes import titled
from tests.faults.supervisors import MANAGER
from tests.fuzz.tails import begin_many
from tests.fuzz.test_schema import only_known_server_errors, our_schema
from tests.gateway import running_gateway
from tests.waiting import wait_until

__all__ = ["no_settings_of_the_developer"]

TIMEOUT_S = 60.0
SETTINGS = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LONG_SETTINGS = settings(SETTINGS, max_examples=200, derandomize=False)
#: What would reserve something, install something, or fetch something.
COSTLY = ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory")
COSTLY_TOO = ("entrypoint_resources", "entrypoint_label_selector")
CHEAP_FIELDS = ("env_vars", "config", "excludes")

schema = our_schema()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with plugin(enabled=True), running_cluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[str]:
    with running_gateway(cluster) as url:
        yield url


@pytest.fixture(params=["plugin", "gateway"])
def url(request: pytest.FixtureRequest, cluster: Cluster, gateway: str) -> Iterator[str]:
    yield cluster.address if request.param == "plugin" else gateway
    check_health(cluster, gateway)


def check_health(cluster: Cluster, gateway: str) -> None:
    for each in (cluster.address, gateway):
        assert requests.get(f"{each}/api/version", timeout=TIMEOUT_S).status_code == 200
    for path in (*cluster.logs_dir.glob("dashboard*.log"), *cluster.folder.glob("gateway-*.out")):
        assert "Incident" not in path.read_text(errors="replace")


def submit(url: str, **fields: Any) -> requests.Response:
    body = {"entrypoint": "true", **fields}
    return requests.post(f"{url}/api/jobs/", json=body, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("runtime_env", "named"),
    [
        ({"workingdir": "gcs://a.zip"}, "workingdir"),
        ({"_validate": False, "pip": 3}, "pip"),
        ({"_validate": False}, "_validate"),
        ({"self": 1}, "self"),
        ({"pip": "x" * 10_000}, "pip"),
        ({"pip": "/root"}, "pip"),
        ({"pip": {"packages": "/root"}}, "pip"),
        ({"conda": "/" + "x" * 10_000}, "conda"),
        ({"uv": {}}, "uv"),
        ({"pip": ["a"], "uv": ["b"]}, "pip"),
        ({"working_dir": "http://["}, "working_dir"),
        ({"working_dir": "foo://a.zip"}, "working_dir"),
        ({"working_dir": "gcs://a"}, "working_dir"),
        ({"working_dir": "/etc"}, "working_dir"),
        ({"container": {"image": "a"}, "pip": ["b"]}, "container"),
        ({"container": {"image": 5}}, "image"),
        ({"_inject_current_ray": 1}, "_inject_current_ray"),
        ({"env_vars": {"": "a"}}, "env_vars"),
    ],
)
def test_environments_are_refused_by_name(
    url: str, runtime_env: dict[str, Any], named: str
) -> None:
    answer = submit(url, runtime_env=runtime_env)
    assert answer.status_code == 400, answer.text
    assert named in answer.text


@pytest.mark.parametrize("selector", [{"a b": "c"}, {"": ""}, {"a": "in("}, {"a\0": "b"}])
def test_label_selectors_are_refused(url: str, selector: dict[str, str]) -> None:
    answer = submit(url, entrypoint_label_selector=selector)
    assert answer.status_code == 400, answer.text
    assert "label_selector" in answer.text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"no zip", "isn't a zip"),
        (lambda: zip_of({"../evil": b""}), "outside"),
        (lambda: zip_of({"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "a link"),
        (lambda: inflating_zip(600 * MIB), "unpacks to more than"),
        (lambda: b"x" * (9 * MIB), "isn't a zip"),
        (lambda: zip_of_size(9 * MIB) + b"x" * 100_000, "isn't a zip"),
    ],
    ids=["text", "outside", "link", "inflation", "big", "tail"],
)
def test_packages_are_refused(url: str, make: Callable[[], bytes], words: str) -> None:
    package = f"{url}/api/packages/gcs/refused.zip"
    answer = requests.put(package, data=make(), timeout=TIMEOUT_S)
    assert answer.status_code == 400, answer.text
    assert words in answer.text
    assert requests.get(package, timeout=TIMEOUT_S).status_code == 404


@pytest.mark.parametrize("size", [MIB, 20 * MIB])
def test_an_upload_that_stops_halfway_leaves_nothing(url: str, size: int) -> None:
    port = urlsplit(url).port or 0
    path = f"/api/packages/gcs/half{size}-{port}.zip"
    head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    data = zip_of_size(size)
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(
            f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: size // 2]
        )
    package = url + path
    assert requests.get(package, timeout=TIMEOUT_S).status_code == 404
    assert requests.put(package, data=data, timeout=TIMEOUT_S).status_code == 200
    assert requests.get(package, timeout=TIMEOUT_S).status_code == 200


def test_slow_clients_hold_up_nobody(url: str) -> None:
    port = urlsplit(url).port or 0
    head = "POST /api/jobs/ HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with contextlib.ExitStack() as stack:
        for n in range(300):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            # Nothing, half of a head, or the begin of a body.
            rest = ["", head, f"{head}Content-Length: 1000\r\n\r\n{{"][n % 3]
            connection.sendall(rest.encode())
        with JobSubmissionClient(url) as client:
            job_id = client.submit_job(entrypoint="echo meanwhile")
            assert "".join(client.tail_job_logs(job_id)).endswith("meanwhile\n")
            assert client.get_job_status(job_id) is JobStatus.SUCCEEDED


def test_jobs_with_unusual_ids_and_the_longest_entrypoint(url: str) -> None:
    side = urlsplit(url).port
    ids = [f"a.b {side}", f"世界 {side}", f"?#%2F&{side}", f"{'x' * 190}{side}"]
    entrypoint = "echo ran #".ljust(MAX_ARGUMENT_BYTES, "x")
    with JobSubmissionClient(url) as client:
        for job_id in ids:
            assert client.submit_job(entrypoint=entrypoint, submission_id=job_id) == job_id
        for job_id in ids:
            info = client.wait_until_finish(job_id, timeout=60)
            assert info.status is JobStatus.SUCCEEDED, info.message
            assert client.get_job_logs(job_id).endswith("ran\n")
            path = f"{url}/api/jobs/{quote(job_id, safe='')}"
            assert requests.get(path, timeout=TIMEOUT_S).json()["submission_id"] == job_id
            assert client.delete_job(job_id) is True


def make_harmless(case: Any) -> None:
    """Have no job run what chance wrote, reserve anything, or fetch anything."""
    body = case.body
    if isinstance(body, dict):
        if isinstance(body.get("entrypoint"), str) and body["entrypoint"].strip():
            body["entrypoint"] = "exit 0\n" + body["entrypoint"]
        for name in (*COSTLY, *COSTLY_TOO):
            body.pop(name, None)
        if isinstance(body.get("runtime_env"), dict):
            env = body["runtime_env"]
            body["runtime_env"] = {name: env[name] for name in CHEAP_FIELDS if name in env}
    if case.operation.path.endswith("/wait"):
        case.query = {**(case.query or {}), "timeout_s": 0}


async def idle_tails(url: str, number: int, flag: Path) -> None:
    """Follow a job that says nothing, many times, until it says something and ends."""
    entrypoint = f"until [ -e {flag} ]; do sleep 0.2; done; echo last"
    answer = await asyncio.to_thread(submit, url, entrypoint=entrypoint)
    path = f"/api/jobs/{answer.json()['submission_id']}/logs/tail"
    tails = await begin_many(urlsplit(url).port or 0, [path] * number)
    assert {await tail.status() for tail in tails} == {101}
    begun = time.monotonic()
    answer = await asyncio.to_thread(submit, url)
    assert answer.status_code == 200
    assert time.monotonic() - begun < 5.0
    flag.touch()
    await asyncio.to_thread(
        wait_until, lambda: all(b"last\n" in tail.received for tail in tails), "the log", 60.0
    )
    for tail in tails:
        tail.close()


async def test_idle_tails(url: str, tmp_path: Path) -> None:
    await idle_tails(url, 300, tmp_path / "flag")


@pytest.mark.long
async def test_ten_thousand_idle_tails(url: str, tmp_path: Path) -> None:
    await idle_tails(url, 10_000, tmp_path / "flag")


@pytest.mark.long
@schema.parametrize()
@LONG_SETTINGS
def test_every_route_for_long(case: Any, cluster: Cluster, gateway: str) -> None:
    ask(case, cluster, gateway)


@schema.parametrize()
@SETTINGS
def test_every_route(case: Any, cluster: Cluster, gateway: str) -> None:
    ask(case, cluster, gateway)


def ask(case: Any, cluster: Cluster, gateway: str) -> None:
    make_harmless(case)
    for url in (cluster.address, gateway):
        response = case.call(base_url=url, timeout=TIMEOUT_S)
        only_known_server_errors(response)
        assert "Traceback" not in response.text


def test_all_jobs_that_were_taken_end(cluster: Cluster, gateway: str) -> None:
    """The last one: whatever was accepted above comes to its end, and can be deleted."""
    with JobSubmissionClient(gateway) as client:
        jobs = client.list_jobs()
        for job_id in jobs:
            info = client.wait_until_finish(job_id, timeout=60)
            assert info.status in (JobStatus.SUCCEEDED, JobStatus.FAILED)
            assert client.delete_job(job_id) is True
        assert client.list_jobs() == {}
    check_health(cluster, gateway)
    [manager] = titled(MANAGER)
    [log] = cluster.logs_dir.glob(f"worker-*-{manager}.err")
    assert "Traceback" not in log.read_text(errors="replace")
