"""Finished jobs leave: first into the archive, then out of the store."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest

from ray_jobs.keeper.clock import wall_ms
from ray_jobs.log_files import SHELF, is_removed_log, log_name, open_log
from ray_jobs.log_holes import trim
from ray_jobs.manager import retention as retention_module
from ray_jobs.manager.archive import FolderArchive
from ray_jobs.manager.finished_jobs import RetentionSettings
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.manager.log_bound import LogBound
from ray_jobs.manager.retention import Retention
from ray_jobs.manager.times import submitted_now
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from tests.waiting import wait_until

from .memory_store import MemoryStore

KEPT_JOBS = 2


@dataclasses.dataclass
class Manager:
    """What a manager has of all this."""

    store: MemoryStore
    journal: Journal
    logs: JobLogs
    retention: Retention

    async def close(self) -> None:
        await self.retention.close()
        await self.journal.close()

    async def run(
        self, submission_id: str, log: str | None = None, max_log_bytes: int | None = None
    ) -> JobRecord:
        """Have a job run and end."""
        record = msgspec.structs.replace(new_record(submission_id), max_log_bytes=max_log_bytes)
        assert await self.journal.create(record)
        self.logs.begin(record)
        if log is not None:
            Path(self.logs.path(submission_id)).write_text(log)
        ended = await self.journal.update(
            submission_id,
            lambda each: msgspec.structs.replace(
                each, status=JobStatus.SUCCEEDED, end_time=wall_ms()
            ),
        )
        assert ended is not None
        self.retention.ended(ended)
        return ended

    async def until_left(self, *submission_ids: str) -> None:
        await until(lambda: not any(each in self.store.records for each in submission_ids))


def new_record(submission_id: str) -> JobRecord:
    return JobRecord(
        submission_id=submission_id,
        entrypoint="true",
        status=JobStatus.PENDING,
        start_time=1,
        attempt=uuid.uuid4().hex,
    )


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition, "what the test waits for", 10)


Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "GATHER_S", 0.0)
    monkeypatch.setattr(retention_module, "FIRST_RETRY_S", 0.01)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    managers: list[Manager] = []
    (tmp_path / "logs").mkdir()

    async def begin(
        archive: str = "",
        store: MemoryStore | None = None,
        most_jobs: int | None = KEPT_JOBS,
        age_s: float | None = None,
        bound: LogBound | None = None,
    ) -> Manager:
        store = store or MemoryStore()
        journal = Journal(store, await store.claim_epoch(), on_superseded=lambda: None)
        records = await store.load()
        journal.seed(records)
        logs = JobLogs(str(tmp_path / "logs"), bound)
        settings = RetentionSettings(most_jobs=most_jobs, age_s=age_s, archive=archive)
        retention = Retention(settings, journal, logs, tmp_path / "archive")
        retention.open(records)
        managers.append(Manager(store, journal, logs, retention))
        return managers[-1]

    yield begin
    for manager in managers:
        await manager.close()


def archived(tmp_path: Path) -> list[dict[str, Any]]:
    """Return all lines of the archive."""
    found = []
    for path in sorted((tmp_path / "archive").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


def ids(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [line["submission_id"] for line in lines]


async def test_the_oldest_leave_with_their_logs(start: Start, tmp_path: Path) -> None:
    manager = await start()
    for name in "abcde":
        await manager.run(name, log=f"log of {name}")
    await manager.until_left("a", "b", "c")
    lines = archived(tmp_path)
    assert sorted(ids(lines)) == ["a", "b", "c"]
    for line in lines:
        text = f"log of {line['submission_id']}"
        assert (tmp_path / "archive" / line["log"]["name"]).read_text() == text
        assert line["log"]["bytes"] == len(text)
        assert open_log(manager.logs.path(line["submission_id"])) is None
    assert set(manager.store.records) == {"d", "e"}
    assert Path(manager.logs.path("d")).read_text() == "log of d"


async def test_logs_in_all_places(start: Start, tmp_path: Path) -> None:
    manager = await start(most_jobs=0)
    (tmp_path / "logs" / SHELF).mkdir()
    (tmp_path / "logs" / SHELF / log_name("shelved")).write_text("old")
    for name in ("shelved", "without"):
        await manager.run(name)
    (tmp_path / "logs" / SHELF / log_name("shelved")).write_text("old")
    await manager.run("empty", log="")
    await manager.until_left("shelved", "without", "empty")
    logs = {line["submission_id"]: line["log"] for line in archived(tmp_path)}
    assert logs["without"] is None
    assert logs["empty"] == {"name": None, "bytes": 0, "removed": False}
    left = [each.name for each in (tmp_path / "logs").rglob("*.log")]
    assert left == []


async def test_another_device(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderArchive, "can_link", lambda self, folder: False)
    manager = await start(most_jobs=0)
    for number in range(120):
        await manager.run(f"job-{number}", log=str(number))
    await manager.until_left(*(f"job-{number}" for number in range(120)))
    lines = archived(tmp_path)
    assert len(lines) == 120
    for line in lines:
        log = tmp_path / "archive" / line["log"]["name"]
        assert f"job-{log.read_text()}" == line["submission_id"]
    assert list((tmp_path / "logs").glob("*.log")) == []


async def test_a_bounded_log_has_the_notice_in_the_archive(start: Start, tmp_path: Path) -> None:
    """On the same disk too, where others are linked."""
    manager = await start()
    for name in "abcd":
        await manager.run(name, max_log_bytes=1024 * 1024)
        path = Path(manager.logs.path(name))
        path.write_bytes(b"x" * (3_000_000 if name == "a" else 1000))
        trim(str(path), 1024 * 1024)
    await manager.until_left("a", "b")
    for line in archived(tmp_path):
        text = (tmp_path / "archive" / line["log"]["name"]).read_bytes()
        assert len(text) == line["log"]["bytes"]
        assert b"\0" not in text
        assert (b"were dropped here" in text) == (line["submission_id"] == "a")


async def test_ages_are_right_though_the_clock_was_set(start: Start) -> None:
    """Two jobs were submitted an hour ago; since then the wall clock has been set by a day."""
    now = submitted_now()
    day_ms, hour_ms = 86_400_000, 3_600_000
    store = MemoryStore()
    for name, start_time, ran_ms in (
        ("young", now["start_time"] - day_ms, hour_ms),
        ("old", now["start_time"] + day_ms, 1000),
    ):
        store.records[name] = msgspec.structs.replace(
            new_record(name),
            status=JobStatus.SUCCEEDED,
            boot_id=now["boot_id"],
            submitted_boot_ms=now["submitted_boot_ms"] - hour_ms,
            start_time=start_time,
            end_time=start_time + ran_ms,
        )
    manager = await start(store=store, most_jobs=None, age_s=1800)
    await manager.until_left("old")
    await asyncio.sleep(0.1)
    assert set(store.records) == {"young"}


async def test_logs_count_while_the_archive_fails(start: Start, tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file where the folder should be")
    bound = LogBound(str(tmp_path / "logs"), 350_000)
    bound.open([], lambda _: False)
    manager = await start(most_jobs=0, bound=bound)
    for name in "abcd":
        await manager.run(name, log="x" * 100_000)
        bound.ended(name)
    removed = Path(manager.logs.path("a"))
    await until(removed.is_symlink)
    (tmp_path / "archive").unlink()
    await manager.until_left(*"abcd")
    logs = {line["submission_id"]: line["log"] for line in archived(tmp_path)}
    assert logs["a"] == {"name": None, "bytes": 0, "removed": True}
    assert logs["b"]["bytes"] == 100_000
    await until(lambda: bound._total == 0)


async def test_a_url(start: Start) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    manager = await start(root, most_jobs=0)
    for name in "abc":
        await manager.run(name, log=f"log of {name}")
    await manager.until_left(*"abc")
    files = fsspec.filesystem("memory")
    lines = []
    for path in files.glob(f"{root}/*.jsonl"):
        lines += [json.loads(line) for line in files.cat_file(path).splitlines()]
    assert sorted(ids(lines)) == ["a", "b", "c"]
    for line in lines:
        text = files.cat_file(f"{root}/{line['log']['name']}").decode()
        assert text == f"log of {line['submission_id']}"


async def test_an_id_may_be_used_again(start: Start, tmp_path: Path) -> None:
    manager = await start(most_jobs=0)
    for number in range(3):
        await manager.run("same", log=f"number {number}")
        await manager.until_left("same")
    lines = archived(tmp_path)
    assert ids(lines) == ["same"] * 3
    texts = {(tmp_path / "archive" / line["log"]["name"]).read_text() for line in lines}
    assert texts == {"number 0", "number 1", "number 2"}


async def test_a_broken_archive_loses_nothing(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "archive").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        manager = await start(most_jobs=0)
        for name in "abc":
            await manager.run(name, log=name)

        def failures() -> int:
            return sum("fails" in each.message for each in caplog.records)

        await asyncio.to_thread(wait_until, lambda: failures() > 0, "it has failed")
        await asyncio.sleep(0.2)  # it is tried again meanwhile
        assert set(manager.store.records) == set("abc")
        assert Path(manager.logs.path("a")).read_text() == "a"
        assert failures() == 1
        (tmp_path / "archive").unlink()
        await manager.until_left(*"abc")
        assert sum("works again" in each.message for each in caplog.records) == 1
    assert sorted(ids(archived(tmp_path))) == ["a", "b", "c"]


async def test_a_record_that_is_no_text_leaves_too(start: Start, tmp_path: Path) -> None:
    """YAML may say half of a surrogate pair: in a conda file on the head, which nobody refuses."""
    manager = await start(most_jobs=0)
    record = msgspec.structs.replace(
        new_record("a"), runtime_env={"conda": {"dependencies": ["half \ud800"]}}
    )
    assert await manager.journal.create(record)
    ended = await manager.journal.update(
        "a",
        lambda each: msgspec.structs.replace(each, status=JobStatus.SUCCEEDED, end_time=wall_ms()),
    )
    manager.retention.ended(ended)
    await manager.run("b")
    await manager.until_left("a", "b")
    [line] = [each for each in archived(tmp_path) if each["submission_id"] == "a"]
    assert line["runtime_env"] == {"conda": {"dependencies": ["half ?"]}}


@pytest.mark.parametrize("moment", ["found", "opened", "copied"])
async def test_a_log_that_cant_be_read_keeps_its_own_job_only(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    moment: str,
) -> None:
    monkeypatch.setattr(FolderArchive, "can_link", lambda self, folder: False)
    bad = tmp_path / "logs" / log_name("b")

    def failing_look(path: str) -> bool:
        if path == str(bad):
            raise OSError(errno.EIO, "Input/output error")
        return is_removed_log(path)

    def failing_open(path: str) -> int | None:
        if path == str(bad):
            raise OSError(errno.EIO, "Input/output error")
        return open_log(path)

    def failing_read(fd: int, size: int, offset: int) -> bytes:
        if os.path.samestat(os.fstat(fd), bad.stat()):
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, size, offset)

    read = os.pread
    if moment == "found":
        monkeypatch.setattr(retention_module, "is_removed_log", failing_look)
    elif moment == "opened":
        monkeypatch.setattr(retention_module, "open_log", failing_open)
    else:
        monkeypatch.setattr(os, "pread", failing_read)
    manager = await start(most_jobs=0)
    for name in "abc":
        await manager.run(name, log=name)
    await manager.until_left("a", "c")
    assert set(manager.store.records) == {"b"}
    assert bad.exists()
    assert sum("Job b is kept" in each.message for each in caplog.records) == 1
    monkeypatch.undo()
    await manager.close()
    later = await start(store=manager.store, most_jobs=0)
    await later.until_left("b")
    assert set(ids(archived(tmp_path))) == set("abc")  # twice, perhaps; never not


async def test_a_job_that_put_a_folder_in_the_place_of_its_log_leaves(
    start: Start, tmp_path: Path
) -> None:
    manager = await start(most_jobs=0)
    (tmp_path / "logs" / log_name("a")).mkdir()
    for name in "ab":
        await manager.run(name, log=None if name == "a" else "b")
    await manager.until_left(*"ab")
    assert [line["log"] is None for line in archived(tmp_path)] == [True, False]


async def test_a_store_that_fails_loses_nothing(start: Start, tmp_path: Path) -> None:
    manager = await start(most_jobs=0)
    await manager.run("a", log="a")
    manager.store.failures = 3
    await manager.until_left("a")
    assert ids(archived(tmp_path)) == ["a"]


async def test_a_manager_that_dies_in_between(start: Start, tmp_path: Path) -> None:
    """The lines are in the archive, and the log, but the store has the job yet.

    As long as it is listed, its log is read.
    """
    first = await start(most_jobs=0)
    await first.run("a", log="log of a")
    first.store.open.clear()  # no write comes to its end any more
    await until(lambda: bool(list((tmp_path / "archive").glob("logs/*/*.log"))))
    await until(lambda: first.store.waiting > 0)
    assert Path(first.logs.path("a")).read_text() == "log of a"
    await first.close()
    assert "a" in first.store.records
    first.store.open.set()
    await asyncio.sleep(0.01)
    second = await start(store=first.store, most_jobs=0)
    await second.until_left("a")
    lines = archived(tmp_path)
    assert len({(each["submission_id"], each["attempt"], each["end_time"]) for each in lines}) == 1
    assert len(lines) == 2
    assert {each["log"]["name"] for each in lines} == {lines[0]["log"]["name"]}
    assert {each["log"]["bytes"] for each in lines} == {8}
    assert (tmp_path / "archive" / lines[0]["log"]["name"]).read_text() == "log of a"
    await until(lambda: open_log(second.logs.path("a")) is None)


async def test_a_new_job_of_the_id_keeps_its_log(start: Start, tmp_path: Path) -> None:
    """It comes as soon as the id is free."""
    manager = await start(most_jobs=0)
    for number in range(20):
        await manager.run("a", log=f"old {number}")
        while manager.journal.get("a") is not None:  # noqa: ASYNC110 - at that very moment
            await asyncio.sleep(0)
        new = new_record("a")
        assert await manager.journal.create(new)
        manager.logs.begin(new)
        Path(manager.logs.path("a")).write_text(f"new {number}")
        await asyncio.sleep(0.01)
        assert Path(manager.logs.path("a")).read_text() == f"new {number}"
        await manager.journal.delete(new)


async def test_a_job_that_takes_the_id_meanwhile_keeps_its_log(
    start: Start, tmp_path: Path
) -> None:
    """While the archive fails, the job is deleted and its id used again."""
    (tmp_path / "archive").write_text("a file where the folder should be")
    manager = await start(most_jobs=0)
    old = await manager.run("a", log="old")
    await asyncio.sleep(0.05)
    await manager.journal.delete(old)
    manager.retention.deleted(old)
    new = new_record("a")
    assert await manager.journal.create(new)
    manager.logs.begin(new)
    Path(manager.logs.path("a")).write_text("new")
    (tmp_path / "archive").unlink()
    await manager.run("b", log="b")
    await manager.until_left("b")
    assert manager.store.records["a"].attempt == new.attempt
    assert Path(manager.logs.path("a")).read_text() == "new"


async def test_jobs_of_rays_own_server_stay(start: Start) -> None:
    store = MemoryStore()
    for name, foreign in (("ours", False), ("rays", True)):
        store.records[name] = msgspec.structs.replace(
            new_record(name), status=JobStatus.FAILED, end_time=1, foreign=foreign
        )
    manager = await start(store=store, most_jobs=0)
    await manager.until_left("ours")
    assert set(store.records) == {"rays"}


async def test_a_place_that_is_none_removes_nothing(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start("nothing://me:secret@bucket", most_jobs=0)
    await manager.run("a")
    await until(lambda: bool(caplog.records))
    await manager.run("b")
    assert "All finished jobs are kept" in caplog.text
    assert "secret" not in caplog.text
    assert set(manager.store.records) == {"a", "b"}


async def test_large_records_are_in_several_files(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "FILE_BYTES", 1000)
    store = MemoryStore()
    names = {f"job-{number}" for number in range(30)}
    for name in names:
        store.records[name] = msgspec.structs.replace(
            new_record(name), status=JobStatus.SUCCEEDED, end_time=1
        )
    manager = await start(store=store, most_jobs=0)
    await manager.until_left(*names)
    assert set(ids(archived(tmp_path))) == names
    assert len(archived(tmp_path)) == 30
    assert len(list((tmp_path / "archive").glob("*.jsonl"))) > 5
