"""A log is kept within its bound while a job writes, and when it has ended."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ray_jobs.growth import Growth
from ray_jobs.supervisor import bounding
from ray_jobs.supervisor.bounding import keep_bounded

MIB = 1024 * 1024


@pytest.fixture
async def growth() -> AsyncIterator[Growth]:
    growth = Growth()
    yield growth
    growth.close()


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_a_fast_writer(tmp_path: Path, growth: Growth) -> None:
    path = tmp_path / "log"
    finished = asyncio.Event()
    bounded = asyncio.ensure_future(keep_bounded(str(path), MIB, growth, finished, lambda: None))
    writer = await asyncio.create_subprocess_shell(f"yes | head -c 200000000 >> {path}")
    await writer.wait()
    finished.set()
    await bounded
    assert path.stat().st_size == 200_000_000
    assert taken(path) <= MIB


async def test_nothing_that_is_not_copied_yet(tmp_path: Path, growth: Growth) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10 * MIB)
    finished = asyncio.Event()
    finished.set()
    await keep_bounded(str(path), MIB, growth, finished, lambda: 4 * MIB)
    assert path.read_bytes()[4 * MIB :] == b"x" * 6 * MIB
    assert taken(path) <= 6 * MIB + MIB


async def test_a_quiet_log_is_not_looked_at(
    tmp_path: Path, growth: Growth, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one line\n")
    looks = []
    trim_once = bounding.trim_once

    async def counted(name: str, max_bytes: int, limit: int | None) -> None:
        looks.append(name)
        await trim_once(name, max_bytes, limit)

    monkeypatch.setattr(bounding, "trim_once", counted)
    finished = asyncio.Event()
    bounded = asyncio.ensure_future(keep_bounded(str(path), MIB, growth, finished, lambda: None))
    await asyncio.sleep(0.5)
    assert len(looks) <= 3
    finished.set()
    await bounded


async def test_a_file_system_that_can_not(
    tmp_path: Path, growth: Growth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(bounding, "trim", refuse)
    path = tmp_path / "log"
    path.write_bytes(b"x" * 3 * MIB)
    await keep_bounded(str(path), MIB, growth, asyncio.Event(), lambda: None)
    content = path.read_bytes()
    assert content.startswith(b"x" * 3 * MIB)
    assert content.count(b"max_log_bytes has no effect") == 1
