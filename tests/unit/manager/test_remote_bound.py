"""The log of a job on a worker node: bounded there too, once the head has its copy."""

from __future__ import annotations

from pathlib import Path

from ray_jobs.supervisor.actor import JobSupervisor
from ray_jobs.supervisor.bounding import keep_bounded

MIB = 1024 * 1024


async def test_what_the_head_has_is_dropped_when_all_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "log"
    content = bytes(range(1, 251)) * 40_000
    path.write_bytes(content)
    supervisor = JobSupervisor("")
    attempt = supervisor._attempt("a")
    attempt.log_path, attempt.max_log_bytes, attempt.copied = str(path), 2 * MIB, 0
    attempt.known.set()
    attempt.finished.set()
    # Nothing is copied when the job ends, so nothing may be dropped.
    await keep_bounded(
        str(path), 2 * MIB, supervisor._growth, attempt.finished, lambda: attempt.copied
    )
    copy, complete = b"", False
    while not complete:
        data, complete = await supervisor.read_log("a", len(copy), MIB, 5.0)
        copy += data
    assert copy == content
    assert path.stat().st_blocks * 512 <= 2 * MIB
    supervisor._growth.close()
