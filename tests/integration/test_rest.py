"""The REST API as scripts without a client use it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from tests.cluster import Cluster
from tests.waiting import wait_until

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    return cluster.address


def get(url: str) -> Any:
    answer = requests.get(url, timeout=TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def finish(url: str, job_id: str) -> Any:
    ended = ("SUCCEEDED", "FAILED", "STOPPED")
    wait_until(lambda: get(f"{url}/api/jobs/{job_id}")["status"] in ended, "its end", 60)
    return get(f"{url}/api/jobs/{job_id}")


def test_submit_poll_and_read_as_of_2022(url: str) -> None:
    body = {
        "entrypoint": "echo hello",
        "runtime_env": {},
        "job_id": None,
        "metadata": {"job_submission_id": "123"},
    }
    answer = requests.post(f"{url}/api/jobs/", json=body, timeout=TIMEOUT_S)
    job_id = answer.json()["job_id"]
    assert answer.json()["submission_id"] == job_id
    info = finish(url, job_id)
    assert info["status"] == "SUCCEEDED"
    assert info["metadata"] == {"job_submission_id": "123"}
    assert get(f"{url}/api/jobs/{job_id}/logs")["logs"].endswith("hello\n")
    assert job_id in get(f"{url}/api/jobs/?format=map")
    assert job_id in [job["submission_id"] for job in get(f"{url}/api/jobs/")]


def test_fields_of_a_job_are_rays(url: str) -> None:
    requests.post(
        f"{url}/api/jobs/",
        json={"entrypoint": "true", "submission_id": "fields"},
        timeout=TIMEOUT_S,
    )
    assert list(finish(url, "fields")) == [
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
    version = get(f"{url}/api/version")
    assert list(version) == ["version", "ray_version", "ray_commit", "session_name"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/api/jobs/nobody", 404, "Job nobody does not exist"),
        ("POST", "/api/jobs/nobody/stop", 404, "Job nobody does not exist"),
        ("DELETE", "/api/jobs/nobody", 404, "Job nobody does not exist"),
        ("GET", "/api/jobs/nobody/logs", 404, "Job nobody does not exist"),
        ("GET", "/api/jobs/nobody/logs/tail", 404, "Job nobody does not exist"),
        ("POST", "/api/jobs/", 400, "JSON"),
        ("GET", "/api/packages/gcs/nothing.zip", 404, "does not exist"),
    ],
)
def test_errors_are_plain_text(url: str, method: str, path: str, status: int, words: str) -> None:
    answer = requests.request(method, url + path, timeout=TIMEOUT_S)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert words in answer.text
    assert "Traceback" not in answer.text


def test_own_api(url: str) -> None:
    own = f"{url}/api/ray_jobs/v1"
    requests.post(
        f"{url}/api/jobs/",
        json={"entrypoint": "echo 0123456789; sleep 1", "submission_id": "own-api"},
        timeout=TIMEOUT_S,
    )
    began = time.monotonic()
    info = get(f"{own}/jobs/own-api/wait?timeout_s=30")
    assert info["status"] == "SUCCEEDED"
    assert time.monotonic() - began < 20
    newest = get(f"{own}/jobs?limit=1&status=SUCCEEDED")
    assert newest["jobs"][0]["submission_id"] == "own-api"
    assert newest["next_cursor"]
    part = requests.get(
        f"{own}/jobs/own-api/logs", headers={"Range": "bytes=-5"}, timeout=TIMEOUT_S
    )
    assert (part.status_code, part.text) == (206, "6789\n")
    missing = requests.get(f"{own}/jobs/nobody", timeout=TIMEOUT_S)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "job_not_found"


def test_dashboard_stays_a_good_host(url: str) -> None:
    assert requests.get(f"{url}/api/gcs_healthz", timeout=TIMEOUT_S).text == "success"
    # Drivers of plugin and manager are no activity that would keep a cluster up.
    activity = get(f"{url}/api/component_activities")
    assert activity["driver"]["is_active"] == "INACTIVE", activity
