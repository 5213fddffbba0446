"""The logs of finished jobs together take no more space than asked."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from ray_jobs.log_files import SHELF, close_all, log_name, open_log
from ray_jobs.manager import log_bound, log_shelf
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.log_bound import LogBound
from ray_jobs.manager.log_shelf import LogShelf
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from tests.disks import fill, small_disk
from tests.waiting import wait_until

LOG_BYTES = 100_000
#: Room for three logs.
MAX_BYTES = 350_000


def write(folder: Path, submission_id: str, age: int = 0, size: int = LOG_BYTES) -> Path:
    path = folder / log_name(submission_id)
    path.write_bytes(os.urandom(size))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def content(folder: Path, submission_id: str) -> bytes:
    fd = open_log(str(folder / log_name(submission_id)))
    assert fd is not None
    with open(fd, "rb") as file:
        return file.read()


def is_removed(folder: Path, submission_id: str) -> bool:
    text = content(folder, submission_id)
    assert len(text) == LOG_BYTES or b"[ray-jobs] The log of this job was removed" in text
    return len(text) != LOG_BYTES


async def until_removed(folder: Path, expected: set[str], among: Iterable[str]) -> None:
    def found() -> bool:
        return {each for each in among if is_removed(folder, each)} == expected

    await asyncio.to_thread(wait_until, found, f"{expected} removed", 5)


@pytest.fixture
async def bound(tmp_path: Path) -> LogBound:
    found = LogBound.of(str(tmp_path), {"RAY_JOBS_FINISHED_LOGS_MAX_BYTES": str(MAX_BYTES)})
    found.open([], lambda _: False)
    assert found._task is not None
    await found._task
    return found


async def test_the_oldest_end_is_removed_first(bound: LogBound, tmp_path: Path) -> None:
    for name in "abcde":
        write(tmp_path, name)
        bound.ended(name)
    await until_removed(tmp_path, {"a", "b"}, "abcde")
    assert str(MAX_BYTES).encode() in content(tmp_path, "a")
    assert content(tmp_path, "a").count(b"\n") == 1


async def test_logs_on_the_shelf_count_too(bound: LogBound, tmp_path: Path) -> None:
    (tmp_path / SHELF).mkdir()
    for name in "abcd":
        path = write(tmp_path, name)
        path.rename(tmp_path / SHELF / path.name)
        bound.ended(name)
    await until_removed(tmp_path, {"a"}, "abcd")


async def test_what_an_earlier_manager_left_counts(tmp_path: Path) -> None:
    (tmp_path / SHELF).mkdir()
    for age, name in enumerate("abcdef"):
        path = write(tmp_path, name, age)
        if name in "ef":
            path.rename(tmp_path / SHELF / path.name)
    live = {"f"}
    records = [JobRecord(submission_id="f", entrypoint="true", status=JobStatus.RUNNING)]
    bound = LogBound(str(tmp_path), MAX_BYTES)
    bound.open(records, live.__contains__)
    await until_removed(tmp_path, {"d", "e"}, "abcdef")
    again = LogBound(str(tmp_path), MAX_BYTES)  # links take nothing
    again.open(records, live.__contains__)
    assert again._task is not None
    await again._task
    await until_removed(tmp_path, {"d", "e"}, "abcdef")


async def test_the_oldest_end_is_not_the_oldest_line(tmp_path: Path) -> None:
    """A job that said its last word long before its end isn't older than others for that."""
    write(tmp_path, "quiet", age=7200)
    for name, age in (("a", 3600), ("b", 3500), ("c", 3400)):
        write(tmp_path, name, age)
    now_ms = 1_000_000_000_000
    ages_s = {"a": 3600, "b": 3500, "c": 3400, "quiet": 60}
    records = [
        JobRecord(
            submission_id=name,
            entrypoint="true",
            status=JobStatus.SUCCEEDED,
            start_time=now_ms - 8_000_000,
            end_time=now_ms - age * 1000,
        )
        for name, age in ages_s.items()
    ]
    LogBound(str(tmp_path), MAX_BYTES).open(records, lambda _: False)
    await until_removed(tmp_path, {"a"}, ages_s)


async def test_a_removed_log_that_is_shelved_still_tells_so(
    bound: LogBound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_shelf, "KEPT_LOGS", 0)
    for name in "abcd":
        write(tmp_path, name)
        bound.ended(name)
    await until_removed(tmp_path, {"a"}, "abcd")
    LogShelf(str(tmp_path)).open(lambda _: False)
    shelved = tmp_path / SHELF / log_name("a")
    await asyncio.to_thread(wait_until, shelved.is_symlink, "it is moved", 5)
    assert b"was removed" in content(tmp_path, "a")


async def test_a_full_disk_is_bounded_and_tells_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment: also when there is room again, and nothing was written into it yet."""
    disk = tmp_path / "disk"
    looks = []

    def look_and_close(fds: Iterable[int]) -> None:
        looks.append([is_removed(disk, each) for each in "abcd"])
        close_all(fds)

    monkeypatch.setattr(log_bound, "close_all", look_and_close)
    with small_disk(disk, 1):
        for age, name in enumerate("abcd"):
            write(disk, name, age)
        fill(disk)
        bound = LogBound(str(disk), MAX_BYTES)
        bound.open([], lambda _: False)
        assert bound._task is not None
        await bound._task
        await until_removed(disk, {"d"}, "abcd")
        assert looks[0] == [False, False, False, True]
        again = LogBound(str(disk), MAX_BYTES)
        (disk / "filler").unlink()
        fill(disk)
        again.open([], lambda _: False)  # nothing is written anew
        assert again._task is not None
        await again._task
        await until_removed(disk, {"d"}, "abcd")


async def test_without_room_for_a_link_the_log_itself_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ext4 a long link takes a block, on the tmpfs of the test before none."""

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_bound, "RETRY_S", 0.01)
    monkeypatch.setattr(os, "symlink", no_room)
    paths = {name: write(tmp_path, name, age) for age, name in enumerate("abcdef")}
    archived = tmp_path / "archived"
    archived.hardlink_to(write(tmp_path, "g", 7))
    before = archived.read_bytes()
    bound = LogBound(str(tmp_path), MAX_BYTES)
    bound.open([], lambda _: False)
    assert bound._task is not None
    await bound._task
    await until_removed(tmp_path, {"d", "e", "f"}, paths)
    assert not paths["f"].is_symlink()
    assert not (tmp_path / log_name("g")).exists()
    assert archived.read_bytes() == before
    assert bound._total <= MAX_BYTES
    monkeypatch.undo()
    for name in "gh":
        write(tmp_path, name)
        bound.ended(name)
    await until_removed(tmp_path, {*"bcdef"}, "abcdefgh")
    assert paths["f"].is_symlink()


async def test_a_log_that_cant_be_removed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And is tried again until it can."""

    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def is_tried_again() -> bool:
        return caplog.text.count("can't be removed yet") > 1

    monkeypatch.setattr(log_bound, "RETRY_S", 0.01)
    for age, name in enumerate("abcd"):
        write(tmp_path, name, age)
    bound = LogBound(str(tmp_path), MAX_BYTES)
    with monkeypatch.context() as broken:
        broken.setattr(os, "symlink", fails)
        broken.setattr(log_bound, "open_to_write", fails)
        bound.open([], lambda _: False)
        await asyncio.to_thread(wait_until, is_tried_again, "another try", 5)
    await until_removed(tmp_path, {"d"}, "abcd")


async def test_what_a_killed_manager_left_is_no_hindrance(bound: LogBound, tmp_path: Path) -> None:
    (tmp_path / f"{log_name('a')}.link").symlink_to("nowhere")
    for name in "abcd":
        write(tmp_path, name)
        bound.ended(name)
    await until_removed(tmp_path, {"a"}, "abcd")


async def test_running_jobs_keep_their_logs(tmp_path: Path) -> None:
    bound = LogBound(str(tmp_path), 0)
    bound.open([], {"b"}.__contains__)
    for name in "abc":
        write(tmp_path, name)
        bound.ended(name)  # "b" is the id of a new job by now
    await until_removed(tmp_path, {"a", "c"}, "abc")


async def test_a_new_job_of_the_id_has_a_log_of_its_own(bound: LogBound, tmp_path: Path) -> None:
    logs = JobLogs(str(tmp_path), bound)
    write(tmp_path, "a")
    bound.ended("a")
    env = {"env_vars": {"A": "b"}}
    logs.begin(
        JobRecord(submission_id="a", entrypoint="true", status=JobStatus.PENDING, runtime_env=env)
    )
    aside = next(each.name for each in tmp_path.iterdir() if each.name.endswith("0000"))
    for name in "bcd":
        write(tmp_path, name)
        bound.ended(name)
    await asyncio.to_thread(wait_until, (tmp_path / aside).is_symlink, "it is removed", 5)
    assert b"Runtime env is setting up" in content(tmp_path, "a")


async def test_logs_that_left_dont_count(bound: LogBound, tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path, name)
        bound.ended(name)
    bound.forget(["b"])
    write(tmp_path, "d")
    bound.ended("d")
    await asyncio.sleep(0)
    assert not any(is_removed(tmp_path, each) for each in "abcd")


async def test_logs_that_dont_leave_after_all_are_the_oldest(
    bound: LogBound, tmp_path: Path
) -> None:
    for name in "abc":
        write(tmp_path, name)
        bound.ended(name)
    sizes = bound.forget(["a", "b", "unknown"])
    assert set(sizes) == {"a", "b"}
    write(tmp_path, "d")
    bound.ended("d")
    bound.remember(sizes)
    await until_removed(tmp_path, {"a"}, "abcd")


async def test_who_reads_a_log_reads_on(bound: LogBound, tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    with path.open("rb") as file:
        for name in "abcd":
            path = write(tmp_path, name) if name != "a" else path
            bound.ended(name)
        await until_removed(tmp_path, {"a"}, "abcd")
        assert len(file.read()) == LOG_BYTES


async def test_no_bound(tmp_path: Path) -> None:
    bound = LogBound.of(str(tmp_path), {})
    bound.open([], lambda _: False)
    write(tmp_path, "a")
    bound.ended("a")
    assert [each.name for each in tmp_path.iterdir()] == [log_name("a")]


async def test_an_earlier_jobs_log_that_is_set_aside_goes_first(tmp_path: Path) -> None:
    bound = LogBound(str(tmp_path), MAX_BYTES)
    logs = JobLogs(str(tmp_path), bound)
    bound.open([], lambda _: False)
    for name in "abc":
        write(tmp_path, name)
        bound.ended(name)
    # The job "c" is deleted, and its id given to another.
    logs.begin(JobRecord(submission_id="c", entrypoint="true", status=JobStatus.PENDING))
    [aside] = [path for path in tmp_path.iterdir() if path.name.startswith(log_name("c") + ".")]
    write(tmp_path, "c")
    bound.ended("c")
    await asyncio.to_thread(wait_until, aside.is_symlink, "it is removed", 5)
    await until_removed(tmp_path, set(), "abc")
