"""Waiting for a file to grow."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ray_jobs.inotify import GrowthWatch

LIMIT_S = 5.0


async def quiet(watch: GrowthWatch) -> None:
    """Wait until nothing is left to look for."""
    while await watch.wait(0.01):
        continue


def watches_of_this_process() -> int:
    """Return how many files and folders the kernel watches for us."""
    count = 0
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            count += info.read_text().count("inotify wd:")
        except FileNotFoundError:  # that of the listing itself
            continue
    return count


async def test_each_write_wakes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    with GrowthWatch(str(path)) as watch:
        for _ in range(3):
            await quiet(watch)
            waiter = asyncio.ensure_future(watch.wait(LIMIT_S))
            await asyncio.sleep(0)
            with path.open("a") as file:
                file.write("line\n")
            assert await waiter is True


async def test_a_write_before_the_wait_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with GrowthWatch(str(path)) as watch:
        await quiet(watch)
        path.write_text("came into being")
        assert await watch.wait(LIMIT_S) is True
        await quiet(watch)
        with path.open("a") as file:
            file.write("and grew")
        assert await watch.wait(LIMIT_S) is True


async def test_who_does_not_wait_does_not_watch(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    before = watches_of_this_process()
    with GrowthWatch(str(path)) as watch:
        await quiet(watch)
        assert watches_of_this_process() == before + 1
        with path.open("a") as file:
            file.write("line\n")
        assert await watch.wait(LIMIT_S) is True
        assert watches_of_this_process() == before


async def test_wake_of_the_callers_own(tmp_path: Path) -> None:
    with GrowthWatch(str(tmp_path / "log")) as watch:
        await quiet(watch)
        watch.wake()
        assert await watch.wait(LIMIT_S) is True
        assert await watch.wait(0.01) is False
