"""A supervisor whose zygote is killed before it has forked the job's keeper. Both are real."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.keeper import zygote_source
from ray_jobs.supervisor import actor, node
from ray_jobs.supervisor import zygotes as zygotes_of_nodes
from ray_jobs.supervisor.actor import JobSupervisor
from tests.faults.processes import runs, send, zygotes
from tests.waiting import wait_until

from .conftest import supervisor_order

TIMEOUT_S = 20.0


def order(attempt: str, folder: Path) -> dict[str, Any]:
    return supervisor_order(attempt, f"printf x >> {folder}/{attempt}; exit 3")


class Killer:
    """Stops the zygote before a supervisor connects to it, and kills it then.

    Args:
        after_order: Once it has been sent the order, not before.
    """

    def __init__(self, folder: Path, kills: int, *, after_order: bool) -> None:
        self.left = kills
        self._folder = folder
        self._after_order = after_order
        self._connect = zygotes_of_nodes.connect_to_zygote
        self._killed: int | None = None

    async def connect(self, source: str) -> Any:
        if not self.left:
            return await self._connect(source)
        self.left -= 1
        dying = self._killed
        if dying is not None:  # it listens until it is gone
            await asyncio.to_thread(wait_until, lambda: not runs(dying), "a zygote's end")
        _, writer = await self._connect(source)  # so that there is one
        writer.close()
        [zygote] = zygotes(str(self._folder))
        self._killed = zygote
        os.kill(zygote, signal.SIGSTOP)
        connection = await self._connect(source)
        if self._after_order:
            asyncio.get_running_loop().call_later(0.05, send, zygote)
        else:
            send(zygote)
        return connection


@pytest.mark.parametrize("after_order", [False, True])
async def test_another_is_asked(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch, after_order: bool
) -> None:
    killer = Killer(session_folder, 3, after_order=after_order)
    monkeypatch.setattr(actor, "connect_to_zygote", killer.connect)
    supervisor = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", session_folder)), TIMEOUT_S)
    assert killer.left == 0
    assert (outcome["state"], outcome["code"]) == ("exited", 3)
    assert (session_folder / "a").read_text() == "x"  # started once


async def test_an_attempt_that_is_claimed_is_not_ordered_again(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the keeper was forked, and killed before its first word."""
    killer = Killer(session_folder, 1, after_order=True)
    monkeypatch.setattr(actor, "connect_to_zygote", killer.connect)
    supervisor = JobSupervisor(zygote_source())
    assert node.claim(node.attempt_dir("a"))
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", session_folder)), TIMEOUT_S)
    assert outcome["state"] == "unknown"
    assert not (session_folder / "a").exists()


async def test_it_is_given_up_after_many(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(session_folder, 1000, after_order=False)
    monkeypatch.setattr(actor, "connect_to_zygote", killer.connect)
    monkeypatch.setattr(actor, "MAX_SPAWNS", 2)
    supervisor = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", session_folder)), TIMEOUT_S)
    assert outcome["state"] == "failed_to_start"
    assert "2 times" in outcome["error"]


def interpreter(folder: Path, deaths: int, death: str) -> str:
    """Return a Python that dies so many times before it does anything."""
    for number in range(deaths):
        (folder / f"death{number}").touch()
    path = folder / "python"
    path.write_text(
        f"#!/bin/sh\nfor each in {folder}/death*; do [ -e $each ] && rm $each && {death}; done\n"
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


async def test_one_that_is_killed_before_it_listens_is_started_again(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "_base_executable", interpreter(session_folder, 2, "kill -9 $$"))
    supervisor = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", session_folder)), TIMEOUT_S)
    assert not list(session_folder.glob("death*"))
    assert (outcome["state"], outcome["code"]) == ("exited", 3)


async def test_one_that_cannot_be_started_is_given_up(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "_base_executable", interpreter(session_folder, 1, "exit 7"))
    supervisor = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", session_folder)), TIMEOUT_S)
    assert outcome["state"] == "failed_to_start"
    assert "can't be started: 7" in outcome["error"]
    # The order comes a second time, when a zygote could be started.
    again = await asyncio.wait_for(supervisor.run(1, order("a", session_folder)), TIMEOUT_S)
    assert again == outcome
    assert await supervisor.read_log("a", 0, 1000, TIMEOUT_S) == (b"", True)
    # Nor does another supervisor start it.
    other = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(other.run(1, order("a", session_folder)), TIMEOUT_S)
    assert outcome["state"] == "unknown"
    assert not (session_folder / "a").exists()
