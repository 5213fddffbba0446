"""The pool of supervisors, with stand-ins for them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

import pytest

from ray_jobs.manager import pool as pool_module
from ray_jobs.manager.pool import Member, Pool, PoolSettings

from .virtual import in_virtual_time

GIB = 1024**3


class FakeMaker:
    """Makes numbers. They live until they are ended or killed."""

    def __init__(self) -> None:
        self.made = 0
        self.living: set[int] = set()
        self.failures = 0
        self.changed = asyncio.Event()
        self._dead: dict[int, asyncio.Event] = {}

    async def make(self) -> int:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no room")
        self.made += 1
        self.living.add(self.made)
        self.changed.set()
        return self.made

    async def end(self, handle: int) -> None:
        self.kill(handle)

    async def death(self, handle: int) -> None:
        await self._dead.setdefault(handle, asyncio.Event()).wait()

    def kill(self, handle: int) -> None:
        self.living.discard(handle)
        self._dead.setdefault(handle, asyncio.Event()).set()
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), 5)


@pytest.fixture
async def maker(monkeypatch: pytest.MonkeyPatch) -> FakeMaker:
    # What takes seconds with real supervisors.
    monkeypatch.setattr(pool_module, "REFILL_DELAY_S", 0.01)
    monkeypatch.setattr(pool_module, "GROWTH_DELAY_S", 0.01)
    monkeypatch.setattr(pool_module, "FIRST_RETRY_S", 0.01)
    return FakeMaker()


async def soon(acquiring: Awaitable[Member]) -> Member:
    return await asyncio.wait_for(acquiring, 5)


async def test_warm_ones_are_there_before_the_first_job(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=3, starts_at_once=2))
    pool.fill()
    await maker.until(lambda: len(maker.living) == 3)
    members = [await soon(pool.acquire()) for _ in range(3)]
    assert len({member.handle for member in members}) == 3
    # Filled up again, off the way of the jobs.
    await maker.until(lambda: len(maker.living) == 6)


async def test_a_job_waits_for_the_next_that_is_free(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=0, starts_at_once=1))
    first = await soon(pool.acquire())
    maker.failures = 1_000_000  # the pool doesn't grow
    second = asyncio.ensure_future(pool.acquire())
    urgent = asyncio.ensure_future(pool.acquire(first=True))
    await asyncio.sleep(0)
    pool.release(first)
    assert (await soon(urgent)).handle == first.handle
    assert not second.done()
    pool.release(first)
    assert (await soon(second)).handle == first.handle


async def test_it_grows_for_jobs_that_stay(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=0, starts_at_once=2))
    members = await asyncio.gather(*(soon(pool.acquire()) for _ in range(7)))
    assert len({member.handle for member in members}) == maker.made == 7


async def test_it_does_not_grow_for_jobs_that_are_served_soon(
    maker: FakeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than they take together on any machine: it is "soon" for each of them.
    for name in ("GROWTH_DELAY_S", "REFILL_DELAY_S"):
        monkeypatch.setattr(pool_module, name, 60.0)
    pool = Pool(maker, PoolSettings(warm=1, starts_at_once=2))
    pool.fill()
    await maker.until(lambda: len(maker.living) == 1)

    async def short_job() -> None:
        member = await pool.acquire()
        await asyncio.sleep(0)
        pool.release(member)

    await asyncio.wait_for(asyncio.gather(*(short_job() for _ in range(500))), 5)
    assert maker.made <= 2


async def test_it_shrinks_when_it_is_quiet(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=1, idle_s=0.05, starts_at_once=4))
    members = await asyncio.gather(*(soon(pool.acquire()) for _ in range(6)))
    for member in members:
        pool.release(member)
    await maker.until(lambda: len(maker.living) == 2)
    alive = await soon(pool.acquire())
    assert alive.handle in maker.living


async def test_none_is_kept_where_none_is_wanted(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=0, idle_s=0, starts_at_once=1))
    pool.release(await soon(pool.acquire()))
    await maker.until(lambda: not maker.living)


async def test_the_dead_get_no_job(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=2, starts_at_once=2))
    pool.fill()
    await maker.until(lambda: len(maker.living) == 2)
    busy = await soon(pool.acquire())
    for handle in list(maker.living):
        maker.kill(handle)
    await maker.until(lambda: len(maker.living) == 2)
    pool.release(busy)
    member = await soon(pool.acquire())
    assert member.handle in maker.living


async def test_many_jobs_share_one(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=1, jobs_each=64, starts_at_once=2))
    members = [await soon(pool.acquire()) for _ in range(130)]
    assert maker.made == 3
    by_handle = {member.handle: member.jobs for member in members}
    assert sorted(by_handle.values()) == [2, 64, 64]


async def test_one_of_an_earlier_manager_joins_with_its_jobs(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=0, idle_s=0, starts_at_once=1))
    handle = await maker.make()
    member = pool.join(handle, jobs=1)
    maker.failures = 1_000_000
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    pool.release(member)
    assert (await soon(waiting)) is member


async def test_it_tries_again_to_start_one(
    maker: FakeMaker, caplog: pytest.LogCaptureFixture
) -> None:
    maker.failures = 2
    pool = Pool(maker, PoolSettings(warm=0, starts_at_once=1))
    with caplog.at_level(logging.ERROR):
        await soon(pool.acquire())
    assert "no room" in caplog.text


@pytest.mark.parametrize(("ran_s", "grows"), [(0.001, False), (0.5, True), (math.inf, True)])
def test_many_jobs_wait(monkeypatch: pytest.MonkeyPatch, ran_s: float, grows: bool) -> None:
    """Those that only their start takes time for would wait longer while another one starts."""
    monkeypatch.setattr(pool_module, "PATIENCE_S", 0.1)
    monkeypatch.setattr(pool_module, "GROWTH_DELAY_S", 0.01)
    maker = FakeMaker()

    async def jobs_wait() -> None:
        pool = Pool(maker, PoolSettings(warm=0, starts_at_once=2))
        member = await pool.acquire()
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(200)]
        for _ in range(20):
            pool.release(member, ran_s)
            await asyncio.sleep(0.002)
        assert (maker.made > 1) is grows
        for each in waiting:
            each.cancel()

    in_virtual_time(monkeypatch, pool_module, jobs_wait, 5)


async def test_there_are_never_more_than_fit(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=1, starts_at_once=4, most=3))
    members = [await soon(pool.acquire()) for _ in range(3)]
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.05)
    assert (maker.made, waiting.done(), pool.stalled_for_s()) == (3, False, 0.0)
    # One dies: there is room for another, for the job that it had.
    maker.kill(members[0].handle)
    pool.bury(members[0])
    adopting = asyncio.ensure_future(pool.acquire(first=True))
    await asyncio.sleep(0)
    pool.release(members[0])
    await soon(adopting)
    assert (maker.made, waiting.done()) == (4, False)
    pool.release(members[1])
    assert await soon(waiting) is members[1]


async def test_who_takes_over_a_job_that_runs_waits_for_no_other(maker: FakeMaker) -> None:
    """Its own supervisor died, which was none of the pool's: what that took is free."""
    pool = Pool(maker, PoolSettings(warm=0, starts_at_once=1, most=1))
    member = await soon(pool.acquire())
    waiting = asyncio.ensure_future(pool.acquire())
    adopters = [await soon(pool.acquire(first=True)) for _ in range(2)]
    assert (maker.made, waiting.done()) == (3, False)
    # Those that are too many end with their jobs, whichever these are.
    pool.release(member)
    pool.release(adopters[0])
    await maker.until(lambda: maker.living == {adopters[1].handle})
    assert not waiting.done()
    pool.release(adopters[1])
    assert await soon(waiting) is adopters[1]


async def test_who_gives_up_to_take_over_leaves_no_room(maker: FakeMaker) -> None:
    maker.failures = 1
    pool = Pool(maker, PoolSettings(warm=0, starts_at_once=1, most=1))
    await soon(pool.acquire())
    adopting = asyncio.ensure_future(pool.acquire(first=True))
    await asyncio.sleep(0)
    adopting.cancel()
    await asyncio.wait([adopting])
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.05)
    assert (len(maker.living), waiting.done()) == (1, False)
    waiting.cancel()


async def test_a_job_that_is_stopped_while_it_waits(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=0, starts_at_once=1))
    first = await soon(pool.acquire())
    maker.failures = 1_000_000
    waiting = asyncio.ensure_future(pool.acquire())
    granted = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    pool.release(first)
    # Just given its supervisor, and cancelled before it hears of that.
    granted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await granted
    assert (await soon(pool.acquire())).handle == first.handle


def test_settings(caplog: pytest.LogCaptureFixture) -> None:
    assert PoolSettings.of({}, GIB).jobs_each == 1
    env = {"RAY_JOBS_SUPERVISION": "dense", "RAY_JOBS_WARM_SUPERVISORS": "5"}
    settings = PoolSettings.of(env, GIB)
    assert (settings.jobs_each, settings.warm) == (64, 5)
    assert PoolSettings.of({**env, "RAY_JOBS_DENSE_JOBS": "8"}, GIB).jobs_each == 8
    assert [PoolSettings.of({}, n * GIB).most for n in (0.1, 24)] == [8, 192]
    assert PoolSettings.of({"RAY_JOBS_MAX_SUPERVISORS": "3"}, 24 * GIB).most == 3
    for text in ("-1", "nan", "inf", "many"):
        assert PoolSettings.of({"RAY_JOBS_WARM_IDLE_S": text}, GIB).idle_s == 60.0
    assert "RAY_JOBS_WARM_IDLE_S=many is not a number" in caplog.text


async def test_one_that_retires_gets_no_job_and_ends_with_its_last(maker: FakeMaker) -> None:
    pool = Pool(maker, PoolSettings(warm=1, jobs_each=4))
    retiring = pool.join(await maker.make(), 2, retires=True)
    idle = pool.join(await maker.make(), retires=True)
    await maker.until(lambda: idle.handle not in maker.living)
    member = await pool.acquire()
    assert member.handle not in (retiring.handle, idle.handle)
    pool.release(retiring)
    assert retiring.handle in maker.living
    pool.release(retiring)
    await maker.until(lambda: retiring.handle not in maker.living)


async def test_those_that_retire_leave_room_for_their_successors(maker: FakeMaker) -> None:
    """An upgrade under one long job: the others don't wait for its end."""
    pool = Pool(maker, PoolSettings(warm=0, jobs_each=4, most=1))
    retiring = pool.join(await maker.make(), 1, retires=True)
    member = await soon(pool.acquire())
    assert member.handle != retiring.handle
    more = [await soon(pool.acquire()) for _ in range(3)]
    assert {each.handle for each in more} == {member.handle}
    # Those that stay are bounded all the same.
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert pool.stalled_for_s() == 0.0
    pool.release(member)
    assert (await soon(waiting)).handle == member.handle
    assert len(maker.living) == 2
