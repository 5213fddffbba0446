"""The compatible face's routes for jobs: statuses, words, field order, content types."""

from __future__ import annotations

import asyncio
import io
import json
import re

import pytest

from ray_jobs.models import JobStatus

from .fakes import Client, Cluster, record

FIELDS = [
    "type",
    "job_id",
    "submission_id",
    "driver_info",
    "status",
    "entrypoint",
    "message",
    "error_type",
    "start_time",
    "end_time",
    "metadata",
    "runtime_env",
    "driver_agent_http_address",
    "driver_node_id",
    "driver_exit_code",
]
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}


async def test_version(client: Client) -> None:
    async with client.get("/api/version") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        assert answer.headers["Ray-Jobs-Version"] == "0.1.0"
        assert answer.headers["Ray-Jobs-Max-Package-Bytes"] == str(20 * 1024 * 1024)
        assert await answer.json() == {
            "version": "4",
            "ray_version": "2.60.0",
            "ray_commit": "abc",
            "session_name": "session_1",
        }


async def test_a_submission_is_seen_at_once(client: Client, cluster: Cluster) -> None:
    cluster.manager.stream_open.clear()
    cluster.manager.exists = False
    body = {"entrypoint": "echo hé", "submission_id": "mine", "metadata": {"k": "v"}}
    async with client.post("/api/jobs/", json=body) as answer:
        assert answer.status == 200
        assert await answer.json() == {"job_id": "mine", "submission_id": "mine"}
    cluster.manager.stream_open.set()
    async with client.get("/api/jobs/mine") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        shown = await answer.json()
    assert list(shown) == FIELDS
    assert (shown["type"], shown["status"], shown["entrypoint"]) == (
        "SUBMISSION",
        "PENDING",
        "echo hé",
    )
    assert shown["metadata"] == {"k": "v"}
    assert shown["message"] == "Job has not started yet."


async def test_an_id_is_made_before_the_manager_hears_of_it(
    client: Client, cluster: Cluster
) -> None:
    async with client.post("/api/jobs/", json={"entrypoint": "true", "metadata": None}) as answer:
        submission_id = (await answer.json())["submission_id"]
    assert re.fullmatch(r"raysubmit_[1-9A-HJ-NP-Za-km-z]{16}", submission_id)
    (request, key) = cluster.manager.submitted[0]
    assert request.submission_id == submission_id
    assert len(key) == 32


async def test_the_old_name_of_the_id_is_accepted(client: Client, cluster: Cluster) -> None:
    async with client.post("/api/jobs/", json={"entrypoint": "true", "job_id": "old"}) as answer:
        assert await answer.json() == {"job_id": "old", "submission_id": "old"}
    assert cluster.manager.submitted[0][0].job_id is None


async def test_a_duplicate_says_what_kuberay_reads(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("twice"))
    body = {"entrypoint": "true", "submission_id": "twice"}
    async with client.post("/api/jobs/", json=body) as answer:
        assert answer.status == 500
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await answer.text() == (
            "Job with submission_id twice already exists. Please use a different submission_id."
        )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[1]", "object"),
        (b'{"metadata": {}}', "entrypoint"),
        (b'{"entrypoint": 3}', "entrypoint"),
        (b'{"entrypoint": "true", "metadata": {"a": 1}}', "metadata"),
        (b'{"entrypoint": "true", "nonsense": 1}', "nonsense"),
        (b'{"entrypoint": "true", "submission_id": "a/b"}', "slash"),
    ],
)
async def test_a_malformed_submission(client: Client, body: bytes, words: str) -> None:
    async with client.post("/api/jobs/", data=body) as answer:
        assert answer.status == 400
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        text = await answer.text()
        assert words in text
        assert "Traceback" not in text


async def test_a_submission_that_is_too_large(client: Client) -> None:
    async with client.post("/api/jobs/", data=io.BytesIO(b" " * (3 * 1024 * 1024))) as answer:
        assert answer.status == 413


async def test_a_manager_that_cannot_be_reached(client: Client, cluster: Cluster) -> None:
    cluster.manager.reachable = False
    body = {"entrypoint": "true", "submission_id": "mine"}
    async with client.post("/api/jobs/", json=body) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "3"
        # Nobody knows what has become of it: who sends it again must not make a second job.
        assert (await answer.text()).startswith("The manager restarts. The job may have been")
        assert "as mine: with that submission_id" in await answer.text()
    cluster.manager.reachable = True


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/jobs/none"),
        ("DELETE", "/api/jobs/none"),
        ("POST", "/api/jobs/none/stop"),
        ("GET", "/api/jobs/none/logs"),
        ("GET", "/api/jobs/none/logs/tail"),
    ],
)
async def test_an_unknown_job(client: Client, method: str, path: str) -> None:
    async with client.request(method, path) as answer:
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await answer.text() == "Job none does not exist"


async def test_stop_and_delete(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    async with client.delete("/api/jobs/a") as answer:
        assert answer.status == 409
        assert "is in a non-terminal state RUNNING" in await answer.text()
    cluster.manager.stream_open.clear()
    for stopped in (True, False):
        async with client.post("/api/jobs/a/stop") as answer:
            assert await answer.json() == {"stopped": stopped}
        async with client.get("/api/jobs/a") as answer:
            assert (await answer.json())["status"] == "STOPPED"
    async with client.delete("/api/jobs/a") as answer:
        assert await answer.json() == {"deleted": True}
    async with client.get("/api/jobs/a") as answer:
        assert answer.status == 404


async def test_a_driver_id_stands_for_its_job(client: Client, cluster: Cluster) -> None:
    cluster.manager.put(record("a"))
    for job_id in ("02000000", "03000000"):
        cluster.drivers.add(job_id, submission_id="a")
    for job_id in ("02000000", "03000000", "a"):
        async with client.get(f"/api/jobs/{job_id}") as answer:
            shown = await answer.json()
        assert shown["submission_id"] == "a"
        assert shown["job_id"] == "03000000"
        assert shown["driver_info"] == {
            "id": "03000000",
            "node_ip_address": "10.0.0.1",
            "pid": "77",
        }
    cluster.append("a", b"hello\n")
    async with client.get("/api/jobs/02000000/logs") as answer:
        assert await answer.json() == {"logs": "hello\n"}
    async with client.post("/api/jobs/02000000/stop") as answer:
        assert await answer.json() == {"stopped": True}
    async with client.delete("/api/jobs/02000000") as answer:
        assert await answer.json() == {"deleted": True}


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("POST", "/api/jobs/02000000/stop", "stop"),
        ("DELETE", "/api/jobs/02000000", "delete"),
        ("GET", "/api/jobs/02000000/logs", "get logs of"),
        ("GET", "/api/jobs/02000000/logs/tail", "get logs of"),
    ],
)
async def test_what_a_driver_of_its_own_has_not(
    client: Client, cluster: Cluster, method: str, path: str, action: str
) -> None:
    cluster.drivers.add("02000000")
    async with client.request(method, path) as answer:
        assert answer.status == 400
        assert await answer.text() == f"Can only {action} submission type jobs"


async def test_a_driver_of_which_no_notice_has_come(client: Client, cluster: Cluster) -> None:
    async with client.get("/api/jobs/02000000") as answer:
        assert answer.status == 404
    await cluster.drivers.subscribed.wait()
    loads = cluster.drivers.loads
    async with client.get("/api/jobs/raysubmit_x") as answer:
        assert answer.status == 404
    async with client.get("/api/jobs/02000000") as answer:
        assert answer.status == 404
    assert cluster.drivers.loads == loads, "not again so soon, nor for an id that no driver has"


async def test_the_list_has_submissions_then_drivers(client: Client, cluster: Cluster) -> None:
    async with client.get("/api/jobs/") as answer:
        assert await answer.text() == "[]"
    async with client.get("/api/jobs/?format=map") as answer:
        assert await answer.text() == "{}"
    cluster.manager.put(record("b", start_time=2))
    cluster.manager.put(record('a"', start_time=1))
    await cluster.manager.next_poll()
    cluster.drivers.announce(cluster.drivers.add("02000000"))
    async with client.get("/api/jobs/02000000") as answer:
        assert answer.status == 200
    async with client.get("/api/jobs/") as answer:
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        shown = await answer.json()
    assert [job["submission_id"] or job["job_id"] for job in shown] == ['a"', "b", "02000000"]
    assert all(list(job) == FIELDS for job in shown)
    async with client.get("/api/jobs/?format=map") as answer:
        keyed = await answer.json()
    assert keyed == dict(zip(['a"', "b", "02000000"], shown, strict=True))
    async with client.get("/api/jobs/?format=xml") as answer:
        assert answer.status == 400


@pytest.mark.parametrize("path", ["/api/jobs/a", "/api/jobs/", "/api/ray_jobs/v1/jobs/a"])
async def test_only_browsers_get_env_vars_redacted(
    client: Client, cluster: Cluster, path: str
) -> None:
    runtime_env = {"env_vars": {"TOKEN": "s3cret"}, "working_dir": "gcs://x.zip"}
    cluster.manager.put(record("a", runtime_env=runtime_env))
    for headers, value in ((BROWSER, "<redacted>"), ({}, "s3cret"), (BROWSER, "<redacted>")):
        async with client.get(path, headers=headers) as answer:
            shown = await answer.json()
        job = shown[0] if isinstance(shown, list) else shown
        assert job["runtime_env"] == {"env_vars": {"TOKEN": value}, "working_dir": "gcs://x.zip"}


@pytest.mark.parametrize(
    "header", ["Origin", "Referer", "Sec-Fetch-Mode", "Access-Control-Request-Headers"]
)
async def test_the_signs_of_a_browser(client: Client, cluster: Cluster, header: str) -> None:
    cluster.drivers.add("02000000", runtime_env={"env_vars": {"TOKEN": "s3cret"}})
    async with client.get("/api/jobs/02000000", headers={header: "x"}) as answer:
        assert "s3cret" not in await answer.text()


async def test_other_requests_are_served_during_a_long_list(
    client: Client, cluster: Cluster
) -> None:
    cluster.manager.exists = False
    count = 50_000
    cluster.store.records = [
        record(f"job{number:05}", start_time=number, status=JobStatus.SUCCEEDED)
        for number in range(count)
    ]

    async def whole_list() -> bytes:
        async with client.get("/api/jobs/") as answer:
            assert answer.status == 200
            assert "Content-Length" not in answer.headers
            return await answer.read()

    listing = asyncio.ensure_future(whole_list())
    served = 0
    while not listing.done():
        async with client.get("/api/version") as answer:
            assert answer.status == 200
        served += 1
    assert served > 20
    shown = json.loads(await listing)
    assert [job["submission_id"] for job in shown] == [f"job{n:05}" for n in range(count)]


async def test_a_client_that_leaves_during_a_long_list(client: Client, cluster: Cluster) -> None:
    cluster.manager.exists = False
    cluster.store.records = [record(f"job{number:05}") for number in range(20_000)]
    for _ in range(2):
        async with client.get("/api/jobs/") as answer:
            assert answer.status == 200
            answer.close()
    async with client.get("/api/jobs/job00001") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("count", [1, 3000])
async def test_head_says_what_get_would_but_the_body(
    client: Client, cluster: Cluster, count: int
) -> None:
    for number in range(count):
        cluster.manager.put(record(f"job-{number}"))
    cluster.append("job-0", b"line\n" * 200_000)
    for path in ("/api/version", "/api/jobs/", "/api/jobs/job-0", "/api/jobs/job-0/logs"):
        async with client.head(path) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("application/json")
            assert await answer.read() == b""
    # And nothing is left over on the connection.
    async with client.get("/api/jobs/job-0") as answer:
        assert (await answer.json())["submission_id"] == "job-0"
