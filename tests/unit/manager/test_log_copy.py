"""The copy of a remote log: each byte once, whoever copies it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.log_files import log_name
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord

LOG = b"".join(b"line %d\n" % number for number in range(200_000))
HEADER = b"Runtime env is setting up.\n"
PIECE_BYTES = 100_000
#: When the second manager begins.
CALLS_BEFORE = 5


class RemoteSupervisor:
    """Has a whole log, and gives it in pieces."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_under_way = asyncio.Event()

    def call(self, method: str, *arguments: Any) -> Awaitable[Any]:
        assert method == "read_log"
        return self._read(*arguments)

    async def _read(
        self, attempt: str, offset: int, max_bytes: int, timeout_s: float
    ) -> tuple[bytes, bool]:
        self.calls += 1
        if self.calls == CALLS_BEFORE:
            self.is_under_way.set()
        await asyncio.sleep(0)
        data = LOG[offset : offset + min(max_bytes, PIECE_BYTES)]
        return data, not data


@pytest.fixture
def record() -> JobRecord:
    return JobRecord(
        submission_id="one",
        entrypoint="true",
        status=JobStatus.RUNNING,
        attempt="a",
        on_head=False,
        log_base_bytes=len(HEADER),
    )


async def test_two_managers_copy_at_once(tmp_path: Path, record: JobRecord) -> None:
    """The former one isn't quite dead when its successor goes on where it was."""
    path = tmp_path / log_name("one")
    path.write_bytes(HEADER)
    ended = asyncio.get_running_loop().create_future()
    former, successor = RemoteSupervisor(), RemoteSupervisor()
    seat: Any = former
    copy = asyncio.ensure_future(JobLogs(str(tmp_path)).copy_remote(record, seat, ended))
    await former.is_under_way.wait()
    seat = successor
    await asyncio.gather(copy, JobLogs(str(tmp_path)).copy_remote(record, seat, ended))
    assert successor.calls < former.calls  # it began where the former one was
    assert path.read_bytes() == HEADER + LOG
