"""Two nodes on one machine that share a session's folder, as Ray's nodes do there by default."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.keeper import zygote_source
from ray_jobs.supervisor.actor import JobSupervisor
from tests.faults.processes import zygotes
from tests.waiting import wait_for_line

from .conftest import supervisor_order

TIMEOUT_S = 20.0


async def begun(attempt: str, folder: Path) -> asyncio.Task[dict[str, Any]]:
    """Have a job started by the raylet that the environment tells, and return once it runs."""
    order = supervisor_order(attempt, "echo runs; exec sleep 300")
    job = asyncio.ensure_future(JobSupervisor(zygote_source()).run(1, order))
    await asyncio.to_thread(wait_for_line, folder / "logs" / f"{attempt}.log", "runs", TIMEOUT_S)
    return job


async def test_the_end_of_one_ends_its_own_jobs_only(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "300")
    with monkeypatch.context() as on_the_other:
        on_the_other.setenv("RAY_RAYLET_PID", str(other.pid))
        theirs = await begun("a", session_folder)
    ours = await begun("b", session_folder)
    assert len(zygotes(str(session_folder))) == 2
    other.kill()
    await other.wait()
    outcome = await asyncio.wait_for(theirs, TIMEOUT_S)
    assert outcome["node_died"] is True
    assert not ours.done()
    ours.cancel()
