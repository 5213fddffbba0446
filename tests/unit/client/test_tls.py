from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs import errors
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.tls import check_verify, ssl_argument
from tests.unit.client.conftest import CERTIFICATES
from tests.unit.client.job_server import JobServer


@pytest.mark.parametrize("verify", [False, CERTIFICATES / "server.pem"])
async def test_requests_and_websocket(tls_server: JobServer, verify: bool | Path) -> None:
    tls_server.answer("GET", "/api/ray_jobs/v1/jobs/a/logs/tail", 404, "Job a does not exist")
    async with AsyncJobSubmissionClient(tls_server.url, verify=verify) as client:
        assert await client.list_jobs() == {}
        with pytest.raises(errors.JobNotFound):
            [chunk async for chunk in client.tail_job_logs("a")]


async def test_bundle_from_the_environment(
    tls_server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATES / "server.pem"))
    async with AsyncJobSubmissionClient(tls_server.url) as client:
        assert await client.list_jobs() == {}


async def test_certificates_are_not_read_where_none_is_verified(
    server: JobServer, tmp_path: Path
) -> None:
    path = tmp_path / "empty.pem"
    path.write_text("nothing")
    async with AsyncJobSubmissionClient(server.url, verify=path) as client:
        assert await client.list_jobs() == {}
    async with AsyncJobSubmissionClient("https://127.0.0.1:1", verify=path) as client:
        with pytest.raises(errors.InvalidRequest, match="no CA certificates"):
            await client.list_jobs()


def test_missing_certificates(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"missing\.pem.*don't exist"):
        AsyncJobSubmissionClient(verify=str(tmp_path / "missing.pem"))


def test_file_without_certificates(tmp_path: Path) -> None:
    path = tmp_path / "empty.pem"
    path.write_text("nothing")
    with pytest.raises(errors.InvalidRequest, match="no CA certificates"):
        ssl_argument(check_verify(path))


def test_directory(tmp_path: Path) -> None:
    assert not isinstance(ssl_argument(check_verify(tmp_path)), bool)


def test_other_types() -> None:
    with pytest.raises(errors.InvalidRequest, match="bool or a path"):
        check_verify(1)  # type: ignore[arg-type]
