"""The log of a job on a worker node goes there when all of it is on the head, where asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.supervisor import actor
from ray_jobs.supervisor.actor import JobSupervisor

LOG = b"what the job wrote\n" * 1000
PIECE_BYTES = 4096


def order(**others: Any) -> dict[str, Any]:
    return {
        "attempt": "a",
        "log_name": "job-driver-a.log",
        "stop_env": {},
        "stop_requested": False,
        "fresh_log": True,
        "drops_copied_log": True,
        **others,
    }


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of an attempt that has ended."""
    monkeypatch.setattr(actor, "logs_dir", lambda: str(tmp_path))
    monkeypatch.setattr(actor, "attempt_dir", lambda attempt: str(tmp_path / attempt))
    monkeypatch.setattr(actor, "kill_left", lambda attempt: None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text(json.dumps({"state": "exited", "code": 0}))
    path = tmp_path / "job-driver-a.log"
    path.write_bytes(LOG)
    return path


async def copied(supervisor: JobSupervisor) -> bytes:
    """Read the log as a manager does that has room for it."""
    copy, complete = b"", False
    while not complete:
        data, complete, *_ = await supervisor.read_log("a", len(copy), PIECE_BYTES, 5.0)
        copy += data
    return copy


async def test_dropped_when_the_end_is_recorded(log: Path) -> None:
    supervisor = JobSupervisor("")
    await supervisor.adopt(1, order())
    assert await copied(supervisor) == LOG
    assert log.exists()  # its manager may die before it has recorded the end
    await supervisor.release(["a"])
    assert not log.exists()
    supervisor._growth.close()


async def test_kept_when_the_copy_was_given_up(log: Path) -> None:
    """The head's disk was full."""
    supervisor = JobSupervisor("")
    await supervisor.adopt(1, order())
    await supervisor.read_log("a", 2 * PIECE_BYTES, PIECE_BYTES, 5.0)
    await supervisor.release(["a"])
    assert log.read_bytes() == LOG
    supervisor._growth.close()


async def test_a_supervisor_that_took_over_goes_by_what_it_was_told(log: Path) -> None:
    former, adopter = JobSupervisor(""), JobSupervisor("", adopts_only=True)
    for supervisor in (former, adopter):
        await supervisor.adopt(1, order())
    await former.read_log("a", PIECE_BYTES, PIECE_BYTES, 5.0)
    await adopter.release(["a"])  # nobody has asked it for anything: it can't know
    assert log.exists()
    again = JobSupervisor("", adopts_only=True)
    (log.parent / "a").mkdir()
    (log.parent / "a" / "status.json").write_text(json.dumps({"state": "exited", "code": 0}))
    await again.adopt(1, order())
    # A manager that has all of it asks for what comes after.
    assert await again.read_log("a", len(LOG), PIECE_BYTES, 5.0) == (b"", True)
    await again.release(["a"])
    assert not log.exists()
    for supervisor in (former, adopter, again):
        supervisor._growth.close()


@pytest.mark.parametrize(
    "others",
    [{"drops_copied_log": False}, {"fresh_log": False}],
    ids=["not asked for", "the head's own"],
)
async def test_kept(log: Path, others: dict[str, Any]) -> None:
    supervisor = JobSupervisor("")
    await supervisor.adopt(1, order(**others))
    assert await copied(supervisor) == LOG
    await supervisor.release(["a"])
    assert log.read_bytes() == LOG
    supervisor._growth.close()


async def test_kept_by_the_order_of_an_earlier_version(log: Path) -> None:
    supervisor = JobSupervisor("")
    earlier = order()
    del earlier["drops_copied_log"]
    await supervisor.adopt(1, earlier)
    assert await copied(supervisor) == LOG
    await supervisor.release(["a"])
    assert log.exists()
    supervisor._growth.close()
