"""The logs on the head, where the disk may be full."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    OutOfDiskError,
    RayTaskError,
)

from ray_jobs import log_holes
from ray_jobs.manager import joblog, transitions
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.times import submitted_now
from ray_jobs.models import JobStatus
from ray_jobs.supervisor.logs import last_lines
from ray_jobs.supervisor.node import HEAD_TOKEN_FILE
from tests.disks import fill, small_disk

from .memory_kv import RECORD

DISK_MIB = 1
RUNNING = msgspec.structs.replace(RECORD, status=JobStatus.RUNNING, on_head=False)


def test_token_of_an_earlier_manager_stays(tmp_path: Path) -> None:
    """Supervisors compare what they read with what the manager knows."""
    earlier, later = JobLogs(str(tmp_path)), JobLogs(str(tmp_path))
    earlier.mark_head(str(tmp_path / "work"))
    later.mark_head(str(tmp_path / "work"))
    assert later.head_token == earlier.head_token
    assert (tmp_path / "work" / HEAD_TOKEN_FILE).read_text() == later.head_token


def test_full_disk_keeps_no_manager_from_starting(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_MIB):
        fill(disk)
        logs = JobLogs(str(disk))
        logs.mark_head(str(disk / "work"))
        logs.begin(RECORD)
        (disk / "filler").unlink()
        later = JobLogs(str(disk))
        later.mark_head(str(disk / "work"))
        assert (disk / "work" / HEAD_TOKEN_FILE).read_text() == later.head_token


class Remote:
    """The supervisor of a job on another node, whose log grows as it is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def call(self, method: str, _: str, offset: int, size: int, __: float) -> Any:
        assert method == "read_log"
        return self._data[offset : offset + size], offset >= len(self._data)


async def test_copy_of_a_log_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblog, "DISK_RETRY_S", 0.01)
    monkeypatch.setattr(joblog, "COPY_CHUNK_BYTES", 10_000)
    data = bytes(range(256)) * 1000
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_MIB):
        logs = JobLogs(str(disk))
        fill(disk)
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        copying = asyncio.ensure_future(logs.copy_remote(RUNNING, cast(Any, Remote(data)), ended))
        await asyncio.wait([copying], timeout=0.1)
        assert not copying.done()
        (disk / "filler").unlink()
        assert await asyncio.wait_for(copying, 10) is True
        assert Path(logs.path("a")).read_bytes() == data


async def test_copy_that_fails_until_after_the_end_is_told_to_the_reader(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_MIB):
        logs = JobLogs(str(disk))
        fill(disk)
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ended.set_result({})
        remote = cast(Any, Remote(b"x" * 10_000))
        assert await asyncio.wait_for(logs.copy_remote(RUNNING, remote, ended), 10) is False


async def test_copy_ends_where_the_job_could_not_even_be_started(tmp_path: Path) -> None:
    """Its node's disk is full, or has no Python any more: there will never be a last byte."""

    class NotStarted(Remote):
        async def call(self, *_: Any) -> Any:
            await asyncio.Event().wait()  # until there is more to read

    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    remote = cast(Any, NotStarted(b""))
    copying = asyncio.ensure_future(JobLogs(str(tmp_path)).copy_remote(RUNNING, remote, ended))
    await asyncio.wait([copying], timeout=0.1)
    assert not copying.done()
    failure = RayTaskError("run", "", OSError(errno.ENOSPC, "No space left on device"))
    ended.set_exception(failure)
    assert await asyncio.wait_for(copying, 10) is False
    assert ended.exception() is failure  # for who waits for the end


DISK_FAILS = RayTaskError("read_log", "", OSError(errno.EIO, "Input/output error"))
LOST = ObjectLostError("", "", "")


class Failing(Remote):
    """The log can't be read for a while."""

    def __init__(self, data: bytes, *errors: Exception, failures: float | None = None) -> None:
        super().__init__(data)
        self._errors = itertools.cycle(errors)
        self._failures = len(errors) if failures is None else failures

    async def call(self, method: str, *arguments: Any) -> Any:
        if self._failures:
            self._failures -= 1
            raise next(self._errors)
        return await super().call(method, *arguments)


@pytest.mark.parametrize(
    "error",
    [
        DISK_FAILS,
        LOST,
        ObjectFetchTimedOutError("", "", ""),
        OutOfDiskError("of Ray's object store"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_copy_goes_on_when_the_log_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(joblog, "DISK_RETRY_S", 0.01)
    logs = JobLogs(str(tmp_path))
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    remote = cast(Any, Failing(b"x" * 10_000, error, failures=3))
    assert await asyncio.wait_for(logs.copy_remote(RUNNING, remote, ended), 10) is True
    assert Path(logs.path("a")).read_bytes() == b"x" * 10_000


async def test_copy_goes_on_when_its_size_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file on a network disk, say."""
    monkeypatch.setattr(joblog, "DISK_RETRY_S", 0.01)
    logs = JobLogs(str(tmp_path))
    size, failures = logs.size, [OSError(errno.EIO, "Input/output error")] * 3

    def fail(submission_id: str) -> int:
        if failures:
            raise failures.pop()
        return size(submission_id)

    monkeypatch.setattr(logs, "size", fail)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    remote = cast(Any, Failing(b"x" * 10_000, LOST, failures=1))
    assert await asyncio.wait_for(logs.copy_remote(RUNNING, remote, ended), 10) is True
    assert Path(logs.path("a")).read_bytes() == b"x" * 10_000


async def test_copy_survives_a_piece_that_is_lost_after_the_end(tmp_path: Path) -> None:
    logs = JobLogs(str(tmp_path))
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ended.set_result({})
    remote = cast(Any, Failing(b"x" * 10_000, LOST))
    assert await asyncio.wait_for(logs.copy_remote(RUNNING, remote, ended), 10) is True
    assert Path(logs.path("a")).read_bytes() == b"x" * 10_000


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnschedulableError("the node is gone")])
@pytest.mark.parametrize("has_ended", [False, True])
async def test_whose_supervisor_is_gone_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, has_ended: bool
) -> None:
    """Who reads the log of a node that has died may be told first that the answer was lost."""
    monkeypatch.setattr(joblog, "DISK_RETRY_S", 0.01)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    if has_ended:
        ended.set_result({})
    remote = cast(Any, Failing(b"", LOST, error))
    with pytest.raises(type(error)):
        await asyncio.wait_for(JobLogs(str(tmp_path)).copy_remote(RUNNING, remote, ended), 10)


async def test_log_that_cant_be_read_doesnt_keep_its_job_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblog, "DISK_RETRY_S", 0.01)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    remote = cast(Any, Failing(b"", DISK_FAILS, failures=math.inf))
    copying = asyncio.ensure_future(JobLogs(str(tmp_path)).copy_remote(RUNNING, remote, ended))
    await asyncio.wait([copying], timeout=0.1)
    assert not copying.done()  # it runs, and its log may come back
    ended.set_result({})
    assert await asyncio.wait_for(copying, 10) is False
    (tmp_path / "file").touch()
    assert last_lines(str(tmp_path / "file" / "log")) == ""


async def test_copy_that_cant_be_bounded_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(joblog, "COPY_CHUNK_BYTES", 100_000)
    # As on a file system with large blocks.
    monkeypatch.setattr(log_holes, "_SMALLEST_BLOCK_BYTES", 4 * 1024 * 1024)
    record = msgspec.structs.replace(RUNNING, max_log_bytes=1024 * 1024)
    logs = JobLogs(str(tmp_path))
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    data = b"x" * 3_000_000
    assert await logs.copy_remote(record, cast(Any, Remote(data)), ended)
    content = Path(logs.path("a")).read_bytes()
    assert content.startswith(data)
    assert content[len(data) :].startswith(b"[ray-jobs] max_log_bytes has no effect")
    assert content.count(b"\n") == 1
    assert caplog.text.count("can't be bounded") == 1


async def test_log_of_a_deleted_job_is_not_a_new_ones(tmp_path: Path) -> None:
    """The manager was killed when it had recorded the new one."""
    logs = JobLogs(str(tmp_path))
    path = Path(logs.path("a"))
    record = msgspec.structs.replace(
        RECORD, runtime_env={"env_vars": {"A": "b"}}, **submitted_now()
    )
    path.write_text("of a deleted job")
    os.utime(path, (time.time() - 5,) * 2)
    await logs.begin_missed([record])
    assert "Runtime env is setting up" in path.read_text()
    [aside] = [each for each in tmp_path.iterdir() if each != path]
    assert aside.read_text() == "of a deleted job"
    await logs.begin_missed([record])  # by the next manager
    assert path.read_text().count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 2


async def test_times_of_logs_dont_tell_when_the_clock_was_set(tmp_path: Path) -> None:
    logs = JobLogs(str(tmp_path))
    path = Path(logs.path("a"))
    # It was submitted now, when the clock was an hour ahead.
    now = submitted_now()
    record = msgspec.structs.replace(RECORD, **{**now, "start_time": now["start_time"] + 3_600_000})
    path.write_text("its own")
    await logs.begin_missed([record])
    assert path.read_text() == "its own"


@pytest.mark.parametrize(
    ("outcome", "begin"),
    [
        ({"code": 0}, "Job finished successfully."),
        ({"code": 1}, "Job entrypoint command failed with exit code 1"),
        ({"code": -15, "stopped": True}, "Job was intentionally stopped."),
    ],
)
def test_message_tells_of_a_log_that_may_be_cut_off(outcome: dict[str, Any], begin: str) -> None:
    full = {"state": "exited", "ended_at_ms": 9, **outcome, "log_disk_full": True}
    ended = transitions.concluded(RUNNING, full, 9)
    assert ended is not None
    assert (ended.message or "").startswith(begin)
    assert (ended.message or "").endswith("\n" + transitions.LOG_MAY_BE_CUT_OFF)
    fine = transitions.concluded(RUNNING, {**full, "log_disk_full": False}, 9)
    assert fine is not None
    assert transitions.LOG_MAY_BE_CUT_OFF not in (fine.message or "")
