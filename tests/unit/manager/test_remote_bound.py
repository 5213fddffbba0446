"""The log of a job on a worker node: bounded there too, once the head has its copy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from ray_jobs.log_holes import HEAD_BYTES, read_kept, trim
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.models import JobStatus
from ray_jobs.supervisor import actor
from ray_jobs.supervisor.actor import JobSupervisor
from ray_jobs.supervisor.bounding import keep_bounded

from .memory_kv import RECORD

MIB = 1024 * 1024
RUNNING = msgspec.structs.replace(
    RECORD, status=JobStatus.RUNNING, on_head=False, attempt="a", max_log_bytes=2 * MIB
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "attempt_dir", lambda attempt: str(tmp_path / attempt))


def with_log(path: Path) -> JobSupervisor:
    """Return a supervisor of an attempt that has ended, of which the head has nothing."""
    supervisor = JobSupervisor("")
    attempt = supervisor._attempt("a")
    attempt.log_path, attempt.max_log_bytes, attempt.copied = str(path), 2 * MIB, 0
    attempt.known.set()
    attempt.finished.set()
    return supervisor


async def test_what_the_head_has_is_dropped_when_all_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "log"
    content = bytes(range(1, 251)) * 40_000
    path.write_bytes(content)
    supervisor = with_log(path)
    attempt = supervisor._attempt("a")
    # Nothing is copied when the job ends, so nothing may be dropped.
    await keep_bounded(
        str(path), 2 * MIB, supervisor._growth, attempt.finished, lambda: attempt.copied
    )
    copy, complete = b"", False
    while not complete:
        data, complete, *missing = await supervisor.read_log("a", len(copy), MIB, 5.0)
        assert not missing
        copy += data
    assert copy == content
    assert path.stat().st_blocks * 512 <= 2 * MIB
    supervisor._growth.close()


async def test_what_was_dropped_is_not_copied_as_zeros(tmp_path: Path) -> None:
    """To a manager that isn't quite dead, or one whose disk has lost what it had."""
    path = tmp_path / "log"
    content = bytes(range(1, 251)) * 40_000
    path.write_bytes(content)
    trim(str(path), 2 * MIB)
    supervisor = with_log(path)
    (tmp_path / "head").mkdir()
    logs = JobLogs(str(tmp_path / "head"))
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    assert await logs.copy_remote(RUNNING, cast(Any, Direct(supervisor)), ended)
    missing, rest = kept_behind_head(path)
    assert missing > MIB
    assert rest == content[HEAD_BYTES + missing :]
    copy = Path(logs.path("a"))
    assert copy.read_bytes()[:HEAD_BYTES] == content[:HEAD_BYTES]
    assert kept_behind_head(copy) == (missing, rest)
    supervisor._growth.close()


def kept_behind_head(path: Path) -> tuple[int, bytes]:
    with path.open("rb") as file:
        return read_kept(file.fileno(), HEAD_BYTES, 100 * MIB)


class Direct:
    """The seat of a job whose supervisor is called without Ray."""

    def __init__(self, supervisor: JobSupervisor) -> None:
        self._supervisor = supervisor

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._supervisor, method)(*arguments)
