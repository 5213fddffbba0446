"""Logs of jobs that ended long ago leave the folder that Ray looks through all the time."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from ray_jobs.log_files import SHELF, log_name, open_log
from ray_jobs.manager import log_shelf
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from tests.waiting import wait_until

KEPT = 3
LOOK_AFTER = 2


@pytest.fixture(autouse=True)
def few_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_shelf, "KEPT_LOGS", KEPT)
    monkeypatch.setattr(log_shelf, "LOOK_AFTER_LOGS", LOOK_AFTER)
    monkeypatch.setattr(log_shelf, "SLICE_LOGS", 2)


def record_of(submission_id: str) -> JobRecord:
    return JobRecord(submission_id=submission_id, entrypoint="true", status=JobStatus.PENDING)


def write(folder: Path, submission_id: str, age: int) -> Path:
    path = folder / log_name(submission_id)
    path.write_text(submission_id)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def names_on_shelf(folder: Path) -> set[str]:
    shelf = folder / SHELF
    return {each.name for each in shelf.iterdir()} if shelf.exists() else set()


async def until_shelved(folder: Path, expected: set[str]) -> None:
    names = {log_name(each) for each in expected}
    await asyncio.to_thread(wait_until, lambda: names_on_shelf(folder) == names, "moved", 5)


def content(path: Path) -> bytes | None:
    fd = open_log(str(path))
    if fd is None:
        return None
    with open(fd, "rb") as file:
        return file.read()


async def test_the_oldest_logs_are_moved_and_still_found(tmp_path: Path) -> None:
    paths = {name: write(tmp_path, name, age) for age, name in enumerate("abcdefgh")}
    paths["h"].chmod(0o600)
    (tmp_path / "gcs_server.out").write_text("Ray's")
    logs = JobLogs(str(tmp_path))
    logs.shelf.open(lambda submission_id: submission_id == "g")
    await until_shelved(tmp_path, {"d", "e", "f", "h"})  # not "g", which is old too, but lives
    assert all(content(path) == name.encode() for name, path in paths.items())
    assert (tmp_path / "gcs_server.out").exists()
    shelf = tmp_path / SHELF
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (shelf, shelf / log_name("h"))]
    assert modes == [0o700, 0o600]


async def test_new_logs_push_old_ones_out(tmp_path: Path) -> None:
    logs = JobLogs(str(tmp_path))
    logs.shelf.open(lambda _: False)
    for age, name in enumerate("abcd"):
        write(tmp_path, name, age)
    logs.begin(record_of("new-1"))
    write(tmp_path, "new-1", -1)
    logs.begin(record_of("new-2"))
    await until_shelved(tmp_path, {"c", "d"})


async def test_an_id_that_is_used_again_has_a_new_log(tmp_path: Path) -> None:
    paths = {name: write(tmp_path, name, age) for age, name in enumerate("abcd")}
    logs = JobLogs(str(tmp_path))
    logs.shelf.open(lambda _: False)
    await until_shelved(tmp_path, {"d"})
    logs.begin(record_of("d"))
    assert content(paths["d"]) is None
    [aside] = (tmp_path / SHELF).iterdir()
    assert aside.read_text() == "d"  # nothing is overwritten


async def test_a_second_log_of_an_id_overwrites_nothing_on_the_shelf(tmp_path: Path) -> None:
    write(tmp_path, "d", 9)
    (tmp_path / SHELF).mkdir()
    (tmp_path / SHELF / log_name("d")).write_text("of an earlier job")
    for age, name in enumerate("abc"):
        write(tmp_path, name, age)
    JobLogs(str(tmp_path)).shelf.open(lambda _: False)

    await asyncio.to_thread(wait_until, lambda: len(names_on_shelf(tmp_path)) == 2, "moved", 5)
    assert {each.read_text() for each in (tmp_path / SHELF).iterdir()} == {
        "d",
        "of an earlier job",
    }
