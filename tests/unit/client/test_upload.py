from __future__ import annotations

import asyncio
import io
import os
import time
import zipfile
from pathlib import Path

import pytest

from ray_jobs import errors
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.types import Progress
from ray_jobs.client.upload import OLD_LOCK_S, cache_directory
from tests.unit.client.job_server import JobServer


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text("print(1)")
    (tmp_path / "data").write_bytes(os.urandom(300_000))
    return tmp_path


async def submit(server: JobServer, project: Path, **more: object) -> str:
    """Submit a job with a working directory, and return the URI that was sent."""
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.submit_job(
            entrypoint="true",
            runtime_env={"working_dir": str(project), **more},
        )
    return str(server.submissions[-1]["runtime_env"]["working_dir"])


async def test_directory_is_packed_and_sent(server: JobServer, project: Path) -> None:
    uri = await submit(server, project, excludes=["*.csv"])
    archive = zipfile.ZipFile(io.BytesIO(server.packages[uri]))
    assert archive.namelist() == ["data", "main.py"]
    assert archive.testzip() is None
    assert server.submissions[0]["runtime_env"] == {"working_dir": uri, "excludes": ["*.csv"]}
    package = "/api/packages/gcs/" + uri.removeprefix("gcs://")
    assert server.requests == [
        ("GET", "/api/version"),
        ("GET", package),
        ("PUT", package),
        ("POST", "/api/jobs/"),
    ]
    assert server.headers[2]["Content-Length"] == str(len(server.packages[uri]))


async def test_unchanged_directory_is_not_sent_again(server: JobServer, project: Path) -> None:
    first = await submit(server, project)
    assert await submit(server, project) == first
    assert len(server.paths("PUT")) == 1
    (project / "main.py").write_text("print(2)")
    assert await submit(server, project) != first
    assert len(server.paths("PUT")) == 2


async def test_concurrent_clients_send_it_once(server: JobServer, project: Path) -> None:
    uris = await asyncio.gather(*[submit(server, project) for _ in range(4)])
    assert len(set(uris)) == 1
    assert len(server.paths("PUT")) == 1


async def test_progress(server: JobServer, project: Path) -> None:
    steps: list[Progress] = []
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.submit_job(
            entrypoint="true", runtime_env={"working_dir": project}, on_progress=steps.append
        )
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["hashing", "zipping", "uploading"]
    assert {step.path for step in steps} == {str(project)}
    for stage in stages:
        last = [step for step in steps if step.stage == stage][-1]
        assert last.done_bytes == last.total_bytes > 300_000


async def test_too_large_before_anything_is_sent(server: JobServer, project: Path) -> None:
    server.max_package_bytes = 200_000
    with pytest.raises(errors.PackageTooLarge, match="data"):
        await submit(server, project)
    assert server.requests == [("GET", "/api/version")]


async def test_files_that_shrink_below_the_limit(server: JobServer, project: Path) -> None:
    server.max_package_bytes = 310_000
    (project / "zeros").write_bytes(bytes(2_000_000))
    uri = await submit(server, project)
    assert len(server.packages[uri]) <= 310_000


async def test_archive_is_sent_as_it_is(server: JobServer, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"archive")
    uri = await submit(server, path)
    assert uri.endswith(".tar.gz")
    assert server.packages[uri] == b"archive"
    server.max_package_bytes = 3
    with pytest.raises(errors.PackageTooLarge, match="7 B"):
        await submit(server, path)


async def test_py_modules(server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    wheel = tmp_path / "w-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    async with AsyncJobSubmissionClient(server.url) as client:
        await client.submit_job(
            entrypoint="true",
            runtime_env={"py_modules": [tmp_path / "pkg", "s3://b/a.zip", wheel]},
        )
    first, second, third = server.submissions[0]["runtime_env"]["py_modules"]
    archive = zipfile.ZipFile(io.BytesIO(server.packages[first]))
    assert archive.namelist() == ["pkg/__init__.py"]
    assert second == "s3://b/a.zip"
    assert server.packages[third] == b"wheel"


async def test_proxy_with_a_smaller_limit(server: JobServer, project: Path) -> None:
    uri = await submit(server, project)
    server.packages.clear()
    path = "/api/packages/gcs/" + uri.removeprefix("gcs://")
    server.answer("PUT", path, 413, "<html>413 Request Entity Too Large</html>")
    with pytest.raises(errors.RayJobsError) as caught:
        await submit(server, project)
    assert "client_max_body_size" in (caught.value.hint or "")


async def test_nothing_is_left_behind(server: JobServer, project: Path) -> None:
    old = cache_directory() / "0123.lock"
    old.touch()
    os.utime(old, (time.time() - OLD_LOCK_S - 1,) * 2)
    await submit(server, project)
    left = list(cache_directory().iterdir())
    assert old not in left
    assert all(path.suffix == ".lock" for path in left)


async def test_cancelled_while_packing(server: JobServer, project: Path) -> None:
    async with AsyncJobSubmissionClient(server.url) as client:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_progress(step: Progress) -> None:
            if step.stage == "zipping":
                loop.call_soon_threadsafe(reached.set)

        submission = asyncio.ensure_future(
            client.submit_job(
                entrypoint="true", runtime_env={"working_dir": project}, on_progress=on_progress
            )
        )
        await reached.wait()
        submission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submission
        # The lock is free again.
        await client.submit_job(entrypoint="true", runtime_env={"working_dir": project})


async def test_callback_that_raises(server: JobServer, project: Path) -> None:
    def on_progress(_step: Progress) -> None:
        raise KeyError("mine")

    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(KeyError, match="mine"):
            await client.submit_job(
                entrypoint="true", runtime_env={"working_dir": project}, on_progress=on_progress
            )


def test_cache_directory(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == environment / "cache" / "ray-jobs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == environment / ".cache" / "ray-jobs"
    (environment / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(environment / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(environment))
    assert cache_directory().parent == environment
