"""Every field of a runtime environment that can be realised on a plain machine."""

from __future__ import annotations

import io
import os
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.errors import InvalidRuntimeEnv
from ray_jobs.models import STOCK_MAX_PACKAGE_BYTES, JobStatus

from .test_jobs import finish, python

#: A small package without dependencies, and a version that nothing else here installs.
PACKAGE, VERSION = "iniconfig", "2.0.0"
SHOW_VERSION = f"from importlib.metadata import version; print(version('{PACKAGE}'))"
ON_WORKERS = f"""
import ray
ray.init(logging_level="error")
def see():
    from importlib.metadata import version
    return version("{PACKAGE}")
class Actor:
    def see(self):
        return see()
print(ray.get([ray.remote(see).remote(), ray.remote(Actor).remote().see.remote()]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "main.py": "import helper; print(helper.WORD, open('data/a.txt').read())",
        "helper.py": "WORD = 'helped'",
        "data/a.txt": "alpha",
        "data/skipped.bin": "x",
        "ignored/by_git.txt": "x",
        ".gitignore": "ignored/\n",
        ".rayignore": "*.bin\n",
        "excluded.txt": "x",
    }
    for name, text in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


def test_working_dir(client: JobSubmissionClient, project: Path) -> None:
    env = {"working_dir": str(project), "excludes": ["excluded.txt"]}
    command = "python main.py; find . -type f | sort"
    _, info, log = finish(client, entrypoint=command, runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, log
    assert "helped alpha\n" in log
    files = [line for line in log.splitlines() if line.startswith("./")]
    for absent in ("skipped.bin", "by_git.txt", "excluded.txt"):
        assert not [name for name in files if name.endswith(absent)], files
    assert info.runtime_env["working_dir"].startswith("gcs://")


def test_unchanged_working_dir_is_sent_once(client: JobSubmissionClient, project: Path) -> None:
    stages: list[str] = []
    for _ in range(2):
        stages.clear()
        job_id = client.submit_job(
            entrypoint="python main.py",
            runtime_env={"working_dir": project},
            on_progress=lambda progress: stages.append(progress.stage),
        )
        assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
    assert "uploading" not in stages


@pytest.mark.parametrize("kind", ["zip", "gztar", "xztar"])
def test_archive_as_working_dir(client: JobSubmissionClient, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "inside.py").write_text("print('from the archive')")
    env = {"working_dir": shutil.make_archive(str(tmp_path / "packed"), kind, folder)}
    _, info, log = finish(client, entrypoint="python inside.py", runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, f"{info.message}\n{log}"
    assert log.endswith("from the archive\n")


def test_remote_working_dir(client: JobSubmissionClient, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("top/inside.py", "print('remote')")
    (tmp_path / "remote.zip").write_bytes(buffer.getvalue())
    env = {"working_dir": f"file://{tmp_path}/remote.zip"}
    _, info, log = finish(client, entrypoint="python inside.py", runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, f"{info.message}\n{log}"
    assert log.endswith("remote\n")


def test_py_modules(client: JobSubmissionClient, tmp_path: Path) -> None:
    package = tmp_path / "shipped_package"
    package.mkdir()
    (package / "__init__.py").write_text("NAME = 'package'")
    module = tmp_path / "shipped_module.py"
    module.write_text("NAME = 'module'")
    code = """
import ray, shipped_package, shipped_module
def see():
    import shipped_package, shipped_module
    return shipped_package.NAME + " " + shipped_module.NAME
class Actor:
    def see(self):
        return see()
ray.init(logging_level="error")
print(see(), ray.get([ray.remote(see).remote(), ray.remote(Actor).remote().see.remote()]))
"""
    env = {"py_modules": [str(package), str(module)]}
    _, info, log = finish(client, entrypoint=python(code), runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, f"{info.message}\n{log}"
    assert log.endswith("package module ['package module', 'package module']\n")


def test_environment_that_cannot_import_ray_jobs(
    client: JobSubmissionClient, tmp_path: Path
) -> None:
    (tmp_path / "ray_jobs.py").write_text("raise ModuleNotFoundError('not in this environment')")
    env = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    _, info, log = finish(client, entrypoint=python("import ray, ray_jobs"), runtime_env=env)
    assert info.driver_exit_code == 1
    assert "not in this environment" in log


@pytest.mark.parametrize("form", ["list", "file", "dict"])
def test_pip(client: JobSubmissionClient, tmp_path: Path, form: str) -> None:
    requirement = f"{PACKAGE}=={VERSION}"
    (tmp_path / "requirements.txt").write_text(f"# what it needs\n{requirement}\n")
    pip: Any = {
        "list": [requirement],
        "file": str(tmp_path / "requirements.txt"),
        "dict": {"packages": [requirement], "pip_check": False},
    }[form]
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "driver.py").write_text(SHOW_VERSION + ON_WORKERS)
    env = {"pip": pip, "working_dir": str(tmp_path / "code")}
    _, info, log = finish(client, entrypoint="python driver.py", runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, f"{info.message}\n{log}"
    assert log.endswith(f"{VERSION}\n{[VERSION, VERSION]}\n")
    assert info.runtime_env["pip"]["packages"][-1] == requirement


def test_uv(client: JobSubmissionClient, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(SHOW_VERSION + ON_WORKERS)
    env = {"uv": [f"{PACKAGE}=={VERSION}"], "working_dir": str(tmp_path)}
    _, info, log = finish(client, entrypoint="python driver.py", runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, f"{info.message}\n{log}"
    assert log.endswith(f"{VERSION}\n{[VERSION, VERSION]}\n")


def test_package_that_does_not_exist(client: JobSubmissionClient) -> None:
    env = {"pip": ["no-such-package-of-that-name"]}
    _, info, log = finish(client, entrypoint="true", runtime_env=env)
    assert info.status is JobStatus.FAILED
    assert info.error_type == "RUNTIME_ENV_SETUP_FAILURE"
    assert info.message.startswith("runtime_env setup failed")
    assert "No matching distribution found for no-such-package-of-that-name" in info.message
    assert "No matching distribution found" in log


def test_setup_timeout(client: JobSubmissionClient) -> None:
    env = {"pip": ["setuptools==70.0.0"], "config": {"setup_timeout_seconds": 1}}
    _, info, _ = finish(client, entrypoint="true", runtime_env=env)
    assert info.status is JobStatus.FAILED
    assert info.error_type == "RUNTIME_ENV_SETUP_FAILURE"
    assert "timeout of 1 seconds" in info.message


def test_concurrent_clients_build_a_package_once(
    client: JobSubmissionClient, cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 4096)
    uploads: list[str] = []
    failures: list[BaseException] = []

    def submit() -> None:
        seen: list[str] = []
        with JobSubmissionClient(cluster.address) as each:
            try:
                job_id = each.submit_job(
                    entrypoint="ls -l big.bin",
                    runtime_env={"working_dir": str(tmp_path)},
                    on_progress=lambda progress: seen.append(progress.stage),
                )
                assert each.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                failures.append(error)
        if "uploading" in seen:
            uploads.append("uploaded")

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert uploads == ["uploaded"]


def test_package_above_the_limit_of_rays_own_server(
    client: JobSubmissionClient, tmp_path: Path
) -> None:
    size = STOCK_MAX_PACKAGE_BYTES + 1024 * 1024
    with (tmp_path / "big.bin").open("wb") as file:
        for _ in range(0, size, 1024 * 1024):
            file.write(os.urandom(1024 * 1024))
    env = {"working_dir": str(tmp_path)}
    _, info, log = finish(client, entrypoint="stat -c %s big.bin", runtime_env=env)
    assert info.status is JobStatus.SUCCEEDED, f"{info.message}\n{log}"
    assert int(log.splitlines()[-1]) >= size


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"pip": 3}, "pip"),
        ({"working_dir": "./relative"}, "working_dir"),
        ({"env_vars": {"A": 1}}, "env_vars"),
        ({"pip": ["a"], "conda": "b"}, "conda"),
        ({"config": {"setup_timeout_seconds": 0}}, "setup_timeout_seconds"),
    ],
)
def test_malformed_is_refused_at_submit(
    client: JobSubmissionClient, cluster: Any, env: dict[str, Any], word: str
) -> None:
    import requests

    with pytest.raises(InvalidRuntimeEnv, match=word):
        client.submit_job(entrypoint="true", runtime_env=env)
    # And by the server, from clients that don't look.
    body: Any = {"entrypoint": "true", "runtime_env": env}
    answer = requests.post(f"{cluster.address}/api/jobs/", json=body, timeout=30)
    assert answer.status_code == 400
    assert word in answer.text
    assert "Traceback" not in answer.text
