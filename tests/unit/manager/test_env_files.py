"""Files that runtime environments name: read in time, and of no great size."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import _ray
from ray_jobs.errors import InvalidRuntimeEnv
from ray_jobs.manager import env_files
from ray_jobs.manager.env_files import EnvFiles, files_of


@pytest.mark.parametrize(
    ("runtime_env", "expected"),
    [
        ({}, {}),
        ({"pip": ["requests"], "uv": {"packages": []}, "conda": "base"}, {}),
        ({"pip": "a.txt", "conda": "b.yml"}, {"pip": "a.txt", "conda": "b.yml"}),
        ({"uv": "a.txt", "conda": {"name": "b.yml"}}, {"uv": "a.txt"}),
        ({"pip": {"packages": "a.txt"}, "conda": "/envs/a"}, {"pip": "a.txt", "conda": "/envs/a"}),
        ({"pip": {"packages": ["a.txt"]}, "conda": "b.yml/"}, {"conda": "b.yml/"}),
    ],
)
def test_which_files(runtime_env: dict[str, Any], expected: dict[str, str]) -> None:
    assert files_of(runtime_env) == expected


async def test_what_files_say_takes_their_place(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("requests\nidna\n")
    files = EnvFiles(_ray.normalised_runtime_env)
    found = await files.read({"pip": str(tmp_path / "requirements.txt")})
    assert found["pip"]["packages"] == ["requests", "idna"]
    assert _ray.normalised_runtime_env(found) == found
    (tmp_path / "environment.yml").write_text("dependencies: [pip]")
    found = await files.read({"conda": str(tmp_path / "environment.yml")})
    assert found["conda"] == {"dependencies": ["pip"]}
    assert _ray.normalised_runtime_env(found) == found


@pytest.mark.parametrize("path", ["/none.yml", "x" * 10_000 + ".yml", "/" + "x" * 10_000])
async def test_what_is_not_there(path: str) -> None:
    files = EnvFiles(_ray.normalised_runtime_env)
    asked: list[dict[str, Any]] = [
        {"pip": path},
        {"pip": {"packages": path}},
        {"uv": path},
        {"conda": path},
    ]
    for each in asked:
        [field] = each
        with pytest.raises(InvalidRuntimeEnv, match=f"{field} names .*isn't there on the head"):
            await files.read(each)


async def test_too_large_a_file(tmp_path: Path) -> None:
    files = EnvFiles(_ray.normalised_runtime_env)
    with (tmp_path / "large").open("w") as file:
        file.truncate(env_files.MAX_FILE_BYTES + 1)
    large = str(tmp_path / "large")
    asked: list[dict[str, Any]] = [{"pip": large}, {"pip": {"packages": large}}]
    for each in asked:
        with pytest.raises(InvalidRuntimeEnv, match="pip on the head node has more than 1,048,576"):
            await files.read(each)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/proc/self/pagemap", "more than 1,048,576"),  # 256 GiB, and 0 by its size
        ("/proc/self/mem", "can't be read: Input/output error"),
    ],
)
async def test_files_of_the_kernel(path: str, words: str) -> None:
    for field in ("pip", "uv"):
        with pytest.raises(InvalidRuntimeEnv, match=f"the file of {field} on the head.*{words}"):
            await EnvFiles(_ray.normalised_runtime_env).read({field: path})


async def test_a_folder_of_conda(tmp_path: Path) -> None:
    env = {"conda": str(tmp_path)}
    found = await EnvFiles(_ray.normalised_runtime_env).read(env)
    assert found["conda"] == str(tmp_path)


async def test_a_file_that_hangs_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_files, "READ_TIMEOUT_S", 0.1)
    pipe = tmp_path / "requirements.txt"
    os.mkfifo(pipe)

    def normalise(runtime_env: dict[str, Any]) -> dict[str, Any]:
        return {"pip": Path(runtime_env["pip"]).read_text()}  # waits for a writer

    files = EnvFiles(normalise)
    reads = [asyncio.ensure_future(files.read({"pip": str(pipe)})) for _ in range(6)]
    for each in reads:
        with pytest.raises(InvalidRuntimeEnv, match="pip can't be read"):
            await asyncio.wait_for(each, 5)
    os.close(os.open(pipe, os.O_RDWR))  # all who read it read its end
