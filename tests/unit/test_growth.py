"""Waiting for many logs at once: no growth is lost, and the kernel watches no more than it must."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ray_jobs.growth import Growth, GrowthWaiter

LIMIT_S = 5.0


@pytest.fixture
async def growth() -> AsyncIterator[Growth]:
    growth = Growth()
    yield growth
    growth.close()


def watches_of_this_process() -> int:
    """Return how many files and folders the kernel watches for us."""
    count = 0
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            count += info.read_text().count("inotify wd:")
        except FileNotFoundError:  # that of the listing itself
            continue
    return count


async def quiet(waiter: GrowthWaiter) -> None:
    """Wait until nothing is left to look for."""
    while await waiter.wait(0.01):
        continue


async def test_each_write_wakes_all_who_wait(growth: Growth, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    with contextlib.ExitStack() as stack:
        waiters = [stack.enter_context(growth.waiter(str(path))) for _ in range(3)]
        for _ in range(3):
            for waiter in waiters:
                await quiet(waiter)
            waits = [asyncio.ensure_future(waiter.wait(LIMIT_S)) for waiter in waiters]
            await asyncio.sleep(0)
            with path.open("a") as file:
                file.write("line\n")
            assert await asyncio.gather(*waits) == [True] * 3


async def test_a_cancellation_is_not_lost_just_when_the_log_grows(
    growth: Growth, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.touch()
    with growth.waiter(str(path)) as waiter:
        await quiet(waiter)
        for turns in range(5):
            waiting = asyncio.ensure_future(waiter.wait(LIMIT_S))
            await asyncio.sleep(0)
            waiter.wake()
            for _ in range(turns):
                await asyncio.sleep(0)
            has_ended = waiting.done()
            waiting.cancel()
            await asyncio.wait((waiting,))
            assert waiting.cancelled() or has_ended
            await quiet(waiter)


async def test_who_looked_before_the_watch_was_set_looks_again(
    growth: Growth, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.touch()
    with growth.waiter(str(path)) as first, growth.waiter(str(path)) as second:
        await quiet(first)
        await quiet(second)
        with path.open("a") as file:
            file.write("line\n")
        assert await first.wait(LIMIT_S) is True
        assert await second.wait(LIMIT_S) is True
        # Both have looked now, and no watch is set: this write tells nobody.
        with path.open("a") as file:
            file.write("line\n")
        assert await first.wait(LIMIT_S) is True
        assert await second.wait(LIMIT_S) is True


async def test_a_file_that_comes_into_being(growth: Growth, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with growth.waiter(str(path)) as waiter, growth.waiter(str(tmp_path / "other")) as other:
        await quiet(waiter)
        await quiet(other)
        wait = asyncio.ensure_future(waiter.wait(LIMIT_S))
        await asyncio.sleep(0)
        path.write_text("new")
        assert await wait is True
        assert await other.wait(0.01) is False  # another file's coming wakes nobody
        await quiet(waiter)
        with path.open("a") as file:
            file.write("and grew")
        assert await waiter.wait(LIMIT_S) is True


async def test_watches_are_few_and_go(growth: Growth, tmp_path: Path) -> None:
    before = watches_of_this_process()
    paths = [tmp_path / f"log{n}" for n in range(10)]
    for path in paths[:5]:
        path.touch()
    with contextlib.ExitStack() as stack:
        waiters = [stack.enter_context(growth.waiter(str(path))) for path in paths * 5]
        for waiter in waiters:
            await quiet(waiter)
        assert watches_of_this_process() == before + 5 + 1  # the files, and the folder
        with paths[0].open("a") as file:
            file.write("line\n")
        assert await waiters[0].wait(LIMIT_S) is True
        assert watches_of_this_process() == before + 5
    assert watches_of_this_process() == before


async def test_more_files_than_the_system_watches(
    growth: Growth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Growth, "_add", lambda *_: None)
    with growth.waiter(str(tmp_path / "log")) as waiter:
        assert await waiter.wait(LIMIT_S) is True  # after a short pause: look by yourself
        waiter.wake()
        assert await waiter.wait(LIMIT_S) is True


async def test_an_overflow_of_the_kernels_queue_wakes_everybody(
    growth: Growth, tmp_path: Path
) -> None:
    with growth.waiter(str(tmp_path / "log")) as waiter:
        await quiet(waiter)
        growth._on_event(-1, 0x4000, "")
        assert await waiter.wait(0.01) is True
