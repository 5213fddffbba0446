"""What browsers are shown of a job, and what everyone is when the server redacts always."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import requests
from ray_jobs.dashboard_module import jobs
from ray_jobs.dashboard_module.guard import GuardSettings, settings
from ray_jobs.dashboard_module.steps import STEP_S

from ray_jobs.models import JobStatus
from tests.unit.face.fakes import Cluster, record

from .conftest import serving

BROWSER = {"User-Agent": "Mozilla/5.0"}
TIMEOUT_S = 10.0
SECRETS = ("s3cretvalue", "hunter22", "ghp_sekret", "0123456789abcdef")
ENV = {
    "env_vars": {"KEY": "s3cretvalue"},
    "pip": ["git+https://ghp_sekret@host/a.git"],
    "working_dir": "https://alice:hunter22@host/a.zip",
}


def put_job(cluster: Cluster) -> None:
    cluster.manager.put(
        record(
            "mine",
            status=JobStatus.FAILED,
            entrypoint="curl -H 'Authorization: Bearer 0123456789abcdef' https://host",
            runtime_env=ENV,
            metadata={"source": "https://alice:hunter22@host"},
            message="pip failed for git+https://ghp_sekret@host/a.git with KEY=s3cretvalue",
        )
    )
    cluster.drivers.add("02000000", runtime_env=ENV, entrypoint="x https://a:hunter22@host")


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/",
        "/api/jobs/?format=map",
        "/api/jobs/mine",
        "/api/jobs/02000000",
        "/api/ray_jobs/v1/jobs",
        "/api/ray_jobs/v1/jobs/mine",
        "/api/ray_jobs/v1/jobs/mine/wait",
    ],
)
async def test_browsers_see_no_secret(cluster: Cluster, path: str) -> None:
    put_job(cluster)
    async with serving(cluster) as guarded:
        for _ in range(2):  # the second answer comes from what the first one encoded
            async with guarded.client.get(path) as answer:
                text = await answer.text()
                assert "s3cretvalue" in text
                assert "hunter22" in text
            async with guarded.client.get(path, headers=BROWSER) as answer:
                assert answer.status == 200
                text = await answer.text()
                assert not any(secret in text for secret in SECRETS), text
                assert "<redacted>" in text
                assert '"KEY"' in text


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/ray_jobs/v1/jobs"])
async def test_others_have_their_turn_while_secrets_are_taken_out(
    cluster: Cluster, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submits chooses how much work a job is."""
    for number in range(20):
        cluster.manager.put(record(f"job-{number}"))
    turns = 0
    turns_at: list[int] = []

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def take_secrets_out(_info: object) -> None:
        turns_at.append(turns)
        time.sleep(STEP_S * 0.6)  # of the event loop, as work does

    monkeypatch.setattr(jobs, "take_secrets_out", take_secrets_out)
    async with serving(cluster) as guarded:
        counting = asyncio.ensure_future(count_turns())
        async with guarded.client.get(path, headers=BROWSER) as answer:
            assert answer.status == 200
            shown = await answer.json()
        counting.cancel()
    assert len(shown if isinstance(shown, list) else shown["jobs"]) == len(turns_at) == 20
    # Two take longer than a step may.
    assert all(early < late for early, late in zip(turns_at, turns_at[2:], strict=False))


async def test_a_page_may_choose_its_user_agent(cluster: Cluster) -> None:
    """In Firefox and Safari; where its name points here, there is nothing else to see but this."""
    put_job(cluster)
    rebinding = {"User-Agent": "curl/8.14.1", "Accept": "*/*", "Accept-Language": ""}
    async with (
        serving(cluster) as guarded,
        guarded.client.get("/api/jobs/mine", headers=rebinding) as answer,
    ):
        assert answer.status == 200
        text = await answer.text()
    assert not any(secret in text for secret in SECRETS), text


def by_urllib(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())


def by_requests(url: str) -> str:
    """As `ray job` and `ray.job_submission` ask."""
    return requests.get(url, timeout=TIMEOUT_S).text


def by_curl(url: str) -> str:
    return subprocess.run(
        ["curl", "--silent", "--fail", url], capture_output=True, text=True, check=True
    ).stdout


def by_go(url: str) -> str:
    """As KubeRay's operator asks: the headers of Go's own client."""
    go = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=go), timeout=TIMEOUT_S
    ) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("ask", [by_urllib, by_requests, by_curl, by_go])
async def test_no_client_is_taken_for_a_browser(
    cluster: Cluster, ask: Callable[[str], str]
) -> None:
    """What aiohttp's client sees, any other does: `test_browsers_see_no_secret` begins with it."""
    put_job(cluster)
    async with serving(cluster) as guarded:
        text = await asyncio.to_thread(ask, str(guarded.client.make_url("/api/jobs/mine")))
    assert "s3cretvalue" in text


async def test_what_has_no_secret_is_encoded_once(cluster: Cluster) -> None:
    cluster.manager.put(record("plain", runtime_env={"working_dir": "gcs://x.zip"}))
    async with serving(cluster) as guarded:
        job = await guarded.face.find("plain")
        assert job.info_json(redact=True) is job.info_json(redact=False)


async def test_errors_and_logs_name_no_value(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: list[Any] = [
        {"entrypoint": "true", "runtime_env": {"env_vars": {"KEY": ["s3cretvalue"]}}},
        {"entrypoint": "true", "runtime_env": {"env_vars": {"KEY": "s3cretvalue\x00"}}},
        {"entrypoint": "true", "runtime_env": {"env_vars": "s3cretvalue"}},
        {"entrypoint": "true", "runtime_env": "s3cretvalue"},
        {"entrypoint": "true", "metadata": {"token": ["0123456789abcdef"]}},
        {"entrypoint": "true", "runtime_env": {"env_vars": {"KEY": "s3cretvalue" * 20_000}}},
    ]
    with caplog.at_level(logging.DEBUG):
        async with serving(cluster) as guarded:
            for body in bodies:
                async with guarded.client.post("/api/jobs/", json=body) as answer:
                    assert answer.status == 400, body
                    text = await answer.text()
                    assert not any(secret in text for secret in SECRETS), text
            lines = json.dumps(await guarded.audit())
    assert not any(secret in lines + caplog.text for secret in SECRETS)


def set_to(**environ: str) -> GuardSettings:
    return settings(default_audit_path="/logs/audit", checks_host=False, environ=environ)


def test_settings_by_default() -> None:
    assert set_to() == GuardSettings(audit_path="/logs/audit")
    gateway = settings(default_audit_path="x", checks_host=True, environ={})
    assert gateway.allowed_hosts == ()


def test_settings_of_the_environment() -> None:
    found = set_to(
        RAY_JOBS_ALLOWED_HOSTS="a.example, .b.example",
        RAY_JOBS_TRUSTED_PROXIES="10.0.0.0/8,::1",
        RAY_JOBS_REDACT="always",
        RAY_JOBS_AUDIT_LOG="none",
        RAY_JOBS_MAX_REQUESTS="5",
        RAY_JOBS_MAX_STREAMS="0",
        RAY_JOBS_MAX_SUBMISSIONS_PER_S="0.5",
        RAY_JOBS_MAX_QUEUED_JOBS="7",
        RAY_JOBS_MAX_SUBMISSION_BYTES="8",
        RAY_JOBS_MAX_PACKAGE_BYTES="9",
        RAY_JOBS_AUDIT_MAX_BYTES="10",
        RAY_JOBS_AUDIT_FILES="11",
    )
    assert found.allowed_hosts == ("a.example", ".b.example")
    assert list(map(str, found.trusted_proxies)) == ["10.0.0.0/8", "::1/128"]
    assert found.redact_always
    assert found.audit_path is None
    assert (found.max_requests, found.max_streams, found.max_queued_jobs) == (5, 0, 7)
    assert found.max_submissions_per_s == 0.5
    assert (found.max_submission_bytes, found.max_package_bytes) == (8, 9)
    assert (found.audit_max_bytes, found.audit_files) == (10, 11)


def test_wrong_settings_are_told_and_safe(caplog: pytest.LogCaptureFixture) -> None:
    found = set_to(
        RAY_JOBS_TRUSTED_PROXIES="everyone",
        RAY_JOBS_REDACT="yes",
        RAY_JOBS_MAX_REQUESTS="many",
        RAY_JOBS_MAX_STREAMS="-1",
        RAY_JOBS_MAX_SUBMISSIONS_PER_S="nan",
        RAY_JOBS_AUDIT_FILES="0",
    )
    assert found == GuardSettings(audit_path="/logs/audit", redact_always=True)
    assert len(caplog.records) == 6


@pytest.mark.parametrize("share", ["75", "1.01", "0", "-0.5", "inf", "nan", "75%", ""])
def test_a_share_is_a_part_of_all(share: str, caplog: pytest.LogCaptureFixture) -> None:
    """75, meant as percent, was no limit, and nothing said so."""
    found = set_to(RAY_JOBS_MAX_CLIENT_SHARE=share)
    assert found.max_client_share == GuardSettings().max_client_share
    assert len(caplog.records) == bool(share)
    assert all("RAY_JOBS_MAX_CLIENT_SHARE" in each.message for each in caplog.records)


@pytest.mark.parametrize("share", ["1", "0.001", "0.5"])
def test_shares_that_are_taken(share: str) -> None:
    assert set_to(RAY_JOBS_MAX_CLIENT_SHARE=share).max_client_share == float(share)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 5_000, str(2**53 + 2), "1e306"])
def test_numbers_beyond_reckoning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway didn't start with one."""
    for name in ("RAY_JOBS_MAX_REQUESTS", "RAY_JOBS_MAX_SUBMISSIONS_PER_S"):
        assert set_to(**{name: text}) == GuardSettings(audit_path="/logs/audit")
    assert len(caplog.records) == 2
    assert all(len(each.message) < 200 for each in caplog.records)
    assert set_to(RAY_JOBS_MAX_REQUESTS=str(2**53)).max_requests == 2**53


def test_names_that_match_nothing_are_told(caplog: pytest.LogCaptureFixture) -> None:
    found = settings(
        default_audit_path="x",
        checks_host=False,
        allowed_hosts=["*.b.example", "a.*.example"],
        environ={"RAY_JOBS_ALLOWED_HOSTS": "http://a.example"},
    )
    # Host is looked at all the same.
    assert found.allowed_hosts == ("http://a.example", "*.b.example", "a.*.example")
    [told] = caplog.messages
    assert told.endswith(": http://a.example, a.*.example")


def test_options_add_to_the_environment() -> None:
    found = settings(
        default_audit_path="x",
        checks_host=True,
        allowed_hosts=["b.example"],
        redact_always=True,
        environ={"RAY_JOBS_ALLOWED_HOSTS": "a.example", "RAY_JOBS_REDACT": "browsers"},
    )
    assert found.allowed_hosts == ("a.example", "b.example")
    assert found.redact_always
