"""A supervisor whose zygote is killed before it has forked the job's keeper. Both are real."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.keeper import zygote_source
from ray_jobs.supervisor import actor, node
from ray_jobs.supervisor.actor import JobSupervisor
from tests.faults.processes import named, send
from tests.waiting import wait_until

TIMEOUT_S = 20.0


@pytest.fixture
def folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The session's folder of a node with a process that stands in for its raylet."""
    folder = tmp_path_factory.mktemp("n")
    (folder / "logs").mkdir()
    monkeypatch.setattr(node, "session_dir", lambda: str(folder))
    monkeypatch.setattr(actor, "logs_dir", lambda: str(folder / "logs"))
    with subprocess.Popen(["sleep", "300"]) as raylet:
        monkeypatch.setenv("RAY_RAYLET_PID", str(raylet.pid))
        yield folder
        raylet.kill()
    wait_until(lambda: not zygotes(folder), "its zygotes are gone")


def zygotes(folder: Path) -> list[int]:
    return named("ray-jobs-zygote", str(folder))


def order(attempt: str, folder: Path) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "entrypoint": f"printf x >> {folder}/{attempt}; exit 3",
        "log_name": f"{attempt}.log",
        "log_header": "",
        "fresh_log": False,
        "max_log_bytes": None,
        "stop_requested": False,
        "command_prefix": [],
        "env_vars": {},
        "env": {},
        "default_env": {},
        "drop_env": [],
        "keeps_omp_num_threads": True,
        "num_cpus": 0,
        "stop_env": {},
    }


class Killer:
    """Stops the zygote before a supervisor connects to it, and kills it then.

    Args:
        after_order: Once it has been sent the order, not before.
    """

    def __init__(self, folder: Path, kills: int, *, after_order: bool) -> None:
        self.left = kills
        self._folder = folder
        self._after_order = after_order
        self._connect = node.connect_to_zygote

    async def connect(self, source: str) -> Any:
        if not self.left:
            return await self._connect(source)
        self.left -= 1
        _, writer = await self._connect(source)  # so that there is one
        writer.close()
        [zygote] = zygotes(self._folder)
        os.kill(zygote, signal.SIGSTOP)
        connection = await self._connect(source)
        if self._after_order:
            asyncio.get_running_loop().call_later(0.05, send, zygote)
        else:
            send(zygote)
        return connection


@pytest.mark.parametrize("after_order", [False, True])
async def test_another_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, after_order: bool
) -> None:
    killer = Killer(folder, 3, after_order=after_order)
    monkeypatch.setattr(actor, "connect_to_zygote", killer.connect)
    supervisor = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", folder)), TIMEOUT_S)
    assert killer.left == 0
    assert (outcome["state"], outcome["code"]) == ("exited", 3)
    assert (folder / "a").read_text() == "x"  # started once


async def test_an_attempt_that_is_claimed_is_not_ordered_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the keeper was forked, and killed before its first word."""
    killer = Killer(folder, 1, after_order=True)
    monkeypatch.setattr(actor, "connect_to_zygote", killer.connect)
    monkeypatch.setattr(actor, "KEEPER_START_TIMEOUT_S", 0.1)
    supervisor = JobSupervisor(zygote_source())
    assert node.claim(node.attempt_dir("a"))
    outcome = await asyncio.wait_for(supervisor.run(1, order("a", folder)), TIMEOUT_S)
    assert outcome["state"] == "lost"
    assert not (folder / "a").exists()


async def test_it_is_given_up_after_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = Killer(folder, 1000, after_order=False)
    monkeypatch.setattr(actor, "connect_to_zygote", killer.connect)
    monkeypatch.setattr(actor, "MAX_SPAWNS", 2)
    with pytest.raises(ConnectionError, match="2 times"):
        await asyncio.wait_for(JobSupervisor(zygote_source()).run(1, order("a", folder)), TIMEOUT_S)
