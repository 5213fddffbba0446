"""What a supervisor knows of its node."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.channel import forget_sockets
from ray_jobs.supervisor import node, zygotes


@pytest.fixture
def ended() -> Iterator[int]:
    """A process that has ended, of which its parent hasn't heard: as a raylet for some time."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


def test_raylet_that_has_ended(monkeypatch: pytest.MonkeyPatch, ended: int) -> None:
    monkeypatch.setenv("RAY_RAYLET_PID", str(ended))
    assert not node.raylet_lives()


def test_raylet_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    monkeypatch.setenv("RAY_RAYLET_PID", str(process.pid))
    assert not node.raylet_lives()


def test_raylet_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_RAYLET_PID", str(os.getpid()))
    assert node.raylet_lives()


async def test_no_zygote_without_a_raylet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: int
) -> None:
    monkeypatch.setenv("RAY_RAYLET_PID", str(ended))
    monkeypatch.setattr(zygotes, "work_dir", lambda: str(tmp_path))
    source = f"open({str(tmp_path / 'started')!r}, 'w')"
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(zygotes.connect_to_zygote(source), 0.5)
    assert not (tmp_path / "started").exists()


def test_names_of_channels_that_are_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node, "work_dir", lambda: str(tmp_path))
    others = ["head-token", "manager-a.sock", "zygote-1"]
    for name in (*others, *map(node.channel_name, "abc")):
        (tmp_path / name).touch()
    for _ in range(2):  # the second time there is none
        node.forget_channel("b")
    assert {path.name for path in tmp_path.iterdir()} == {
        *others,
        node.channel_name("a"),
        node.channel_name("c"),
    }
    forget_sockets(str(tmp_path), node.CHANNEL_PREFIX)
    assert sorted(path.name for path in tmp_path.iterdir()) == others


def test_attempts_that_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node, "work_dir", lambda: str(tmp_path))
    assert node.attempts_here() == []
    Path(node.attempt_path("a")).mkdir(parents=True)
    assert node.attempts_here() == ["a"]
