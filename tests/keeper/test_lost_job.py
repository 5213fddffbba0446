"""What a supervisor makes of a job whose keeper was killed. Supervisor, zygote, keeper are real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.keeper import zygote_source
from ray_jobs.keeper.clock import BOOT_ID
from ray_jobs.keeper.files import CONTROL_SOCKET, KEEPER_LINK, STATUS_FILE
from ray_jobs.keeper.keeper import Keeper, Raylet
from ray_jobs.keeper.processes import has_ended, identity_of
from ray_jobs.keeper.sockets import read_line
from ray_jobs.supervisor import node
from ray_jobs.supervisor.actor import JobSupervisor
from ray_jobs.supervisor.orphans import DEATH_TIMEOUT_S
from tests.faults.processes import parent_of, send, zygotes
from tests.waiting import wait_until

from .conftest import processes_in, supervisor_order

TIMEOUT_S = 20.0
ONE = "a"


@pytest.fixture
def supervisor(session_folder: Path) -> JobSupervisor:
    return JobSupervisor(zygote_source())


def begin(
    supervisor: JobSupervisor, folder: Path, script: str = "exit 3"
) -> asyncio.Task[dict[str, Any]]:
    """Have an attempt started that works in a folder."""
    order = supervisor_order(ONE, f"cd {folder}; {script}")
    return asyncio.ensure_future(supervisor.run(1, order))


async def shell_of(folder: Path, sleepers: int) -> int:
    """Wait until so many processes of the job sleep. Returns the pid of its shell."""

    def all_sleep() -> bool:
        return sum(": b'sleep" in each for each in processes_in(folder)) == sleepers

    await asyncio.to_thread(wait_until, all_sleep, "it has started them", TIMEOUT_S)
    return int(node.read_status(node.attempt_dir(ONE))["pid"])


async def until_lost(job: asyncio.Task[dict[str, Any]]) -> None:
    began = time.monotonic()
    outcome = await asyncio.wait_for(job, TIMEOUT_S)
    # At once, not when waiting for the killed is given up.
    assert time.monotonic() - began < DEATH_TIMEOUT_S
    assert outcome["state"] == "lost"
    assert "keeper" in outcome["error"]


async def test_nothing_is_left_once_it_is_told(
    supervisor: JobSupervisor, session_folder: Path, tmp_path: Path
) -> None:
    family = "sleep 300 & (env -i setsid sleep 300 &); (env -i setsid sleep 300 &); wait"
    job = begin(supervisor, tmp_path, family)
    send(parent_of(await shell_of(tmp_path, 3)))
    await until_lost(job)
    assert not processes_in(tmp_path)


async def test_it_is_not_told_before_the_zygote_has_ended_the_rest(
    supervisor: JobSupervisor, session_folder: Path, tmp_path: Path
) -> None:
    job = begin(supervisor, tmp_path, "(env -i setsid sleep 300 &); exec sleep 300")
    shell = await shell_of(tmp_path, 2)
    [zygote] = zygotes(str(session_folder))
    send(zygote, signal.SIGSTOP)
    send(parent_of(shell))
    done, _ = await asyncio.wait([job], timeout=0.3)
    assert not done
    send(zygote, signal.SIGCONT)
    await until_lost(job)
    assert not processes_in(tmp_path)


@pytest.mark.parametrize(
    "family",
    [
        "sleep 300 & setsid sleep 300 & wait",
        "env -i setsid sleep 300 & env -i sleep 300 & wait",  # below the shell
        "(env -i sleep 300 &); exec sleep 300",  # in its session
        "(setsid sh -c 'env -i setsid sleep 300 & wait' &); exec sleep 300",
    ],
)
async def test_without_a_zygote_it_finds_them_itself(
    supervisor: JobSupervisor, session_folder: Path, tmp_path: Path, family: str
) -> None:
    job = begin(supervisor, tmp_path, family)
    shell = await shell_of(tmp_path, 2)
    keeper = parent_of(shell)
    for zygote in zygotes(str(session_folder)):
        send(zygote)
    send(keeper)
    await until_lost(job)
    assert not processes_in(tmp_path)


async def test_a_session_of_later_is_somebody_elses(
    supervisor: JobSupervisor, session_folder: Path, tmp_path: Path
) -> None:
    """The pid of the entrypoint's shell has been used again."""
    stranger = await asyncio.create_subprocess_exec("sleep", "300", start_new_session=True)
    directory = node.attempt_dir(ONE)
    os.mkdir(directory)
    pid, start = identity_of(stranger.pid)
    os.symlink(f"{2**22 + 1} {start} {BOOT_ID}", f"{directory}/{KEEPER_LINK}")
    status = {"state": "running", "attempt": ONE, "pid": pid, "zygote": "none"}
    before_ms = start * 1000 // os.sysconf("SC_CLK_TCK") - 1000
    (Path(directory) / STATUS_FILE).write_text(
        json.dumps({**status, "started_at_ms": 1, "started_boot_ms": before_ms})
    )
    try:
        await supervisor.adopt(1, supervisor_order(ONE, "true"))
        outcome = await supervisor.wait(ONE)
        assert outcome["state"] == "lost"
        assert stranger.returncode is None
        assert not has_ended((pid, start))
    finally:
        stranger.kill()
        await stranger.wait()


async def test_keeper_killed_before_it_has_told_of_a_start(
    session_folder: Path, tmp_path: Path
) -> None:
    """It is held up just before the start."""
    start = "log_fd = open_to_write("
    held = zygote_source().replace(start, f"time.sleep(300); {start}")
    assert held != zygote_source()
    job = begin(JobSupervisor(held), tmp_path)
    directory = Path(node.attempt_dir(ONE))
    await asyncio.to_thread(
        wait_until, (directory / CONTROL_SOCKET).exists, "it listens", TIMEOUT_S
    )
    keeper = node.keeper_of(str(directory))
    assert keeper is not None
    send(keeper[0])
    await until_lost(job)


async def test_an_order_that_comes_again_when_all_is_over_begins_nothing(
    supervisor: JobSupervisor, tmp_path: Path
) -> None:
    """Its call was sent through a channel that broke, and then as an actor's, which is late."""
    outcome = await asyncio.wait_for(begin(supervisor, tmp_path, "echo >> begun"), TIMEOUT_S)
    assert outcome["code"] == 0
    await supervisor.release([ONE])
    again = await asyncio.wait_for(begin(supervisor, tmp_path, "echo >> begun"), TIMEOUT_S)
    assert again["state"] == "unknown"
    assert (tmp_path / "begun").read_text() == "\n"


async def test_what_was_claimed_and_not_begun_never_begins(
    supervisor: JobSupervisor, session_folder: Path, tmp_path: Path
) -> None:
    """The first who adopted it has died before it told."""
    assert node.claim(node.attempt_dir(ONE))
    adopting = supervisor.adopt(1, supervisor_order(ONE, "true"))
    status = await asyncio.wait_for(adopting, TIMEOUT_S)
    assert status["state"] == "unknown"
    late = JobSupervisor(zygote_source())
    outcome = await asyncio.wait_for(begin(late, tmp_path, f"touch {tmp_path}/begun"), TIMEOUT_S)
    assert outcome["state"] == "unknown"
    assert not (tmp_path / "begun").exists()


def test_a_keeper_whose_attempt_is_given_up_under_it_starts_nothing(
    session_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = node.attempt_dir(ONE)
    mkdir = os.mkdir

    def mkdir_and_lose(path: str, mode: int) -> None:
        mkdir(path, mode)
        assert node.never_begins(path)

    monkeypatch.setattr(os, "mkdir", mkdir_and_lose)
    here, there = socket.socketpair()
    order = {
        "attempt": ONE,
        "directory": directory,
        "argv": ["/bin/sh", "-c", f"touch {tmp_path}/begun"],
        "env": {},
        "cwd": "/",
        "log_path": str(tmp_path / "log"),
        "log_header": "",
        "niceness": 0,
    }
    with here, there:
        Keeper(order, there, Raylet(os.getpid()), "zygote").run()
        assert b'"exists"' in (read_line(here) or b"")
    assert node.never_begins(directory)
    assert not (tmp_path / "begun").exists()


async def test_report_tells_how_long_ago_it_ended(
    supervisor: JobSupervisor, session_folder: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    outcome = await asyncio.wait_for(begin(supervisor, tmp_path), TIMEOUT_S)
    took_ms = (time.monotonic() - began) * 1000
    assert 0 <= outcome["ended_ago_ms"] <= took_ms
    await asyncio.sleep(0.2)
    again = await supervisor.wait(ONE)
    assert 200 <= again["ended_ago_ms"] - outcome["ended_ago_ms"] + 1 <= 200 + 5_000
