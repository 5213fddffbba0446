"""What a new manager takes over, with stand-ins for the supervisors."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from ray_jobs import _ray
from ray_jobs.kv import Superseded
from ray_jobs.manager import recovery, seats
from ray_jobs.manager.pool import Pool, PoolSettings
from ray_jobs.manager.recovery import until_done, without_collector
from ray_jobs.manager.seats import Found, PooledSupervisors, Unborn
from ray_jobs.manager.supervisors import CURRENT_PREFIX, Supervisors


class Method:
    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class FakeSupervisor:
    def __init__(self, attempts: list[str], trouble: Exception | None = None) -> None:
        self.attempts = attempts
        self.trouble = trouble
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_born = True
        self.epoch = 0
        self.describe = Method(self._describe)
        self.open_channel = Method(self._open_channel)
        self.hold = Method(self._hold)

    async def _hold(self) -> None:
        await asyncio.Event().wait()

    async def _describe(self, epoch: int, live: Sequence[str] = ()) -> dict[str, Any]:
        await self.answers.wait()
        if self.trouble is not None:
            raise self.trouble
        self.epoch = epoch
        return {"attempts": [each for each in self.attempts if each in live]}

    async def _open_channel(self) -> str:
        raise OSError("no channel")


@pytest.fixture(autouse=True)
def ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray, "actor_id", lambda actor: str(id(actor)))
    monkeypatch.setattr(seats, "forget_channels", lambda _: None)


class FakeSupervisors(Supervisors):
    def __init__(self, pooled: dict[str, FakeSupervisor]) -> None:
        self.pooled = pooled
        self.ended: list[FakeSupervisor] = []
        self.broken: set[str] = set()

    async def unborn(self) -> set[str]:
        return {str(id(each)) for each in self.pooled.values() if not each.is_born}

    async def find(self, submission_id: str) -> FakeSupervisor | None:
        return None

    async def find_pooled(self, name: str) -> FakeSupervisor | None:
        if name in self.broken:
            raise ConnectionError("the GCS is away")
        return self.pooled.get(name)

    async def end(self, handle: FakeSupervisor) -> None:
        self.ended.append(handle)


async def test_pool_of_an_earlier_manager_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "TAKE_OVER_TIMEOUT_S", 0.05)
    busy, idle = FakeSupervisor(["x", "old"]), FakeSupervisor([])
    dead, hanging = FakeSupervisor([], ActorDiedError()), FakeSupervisor(["y"])
    hanging.answers.clear()
    supervisors = FakeSupervisors({"busy": busy, "idle": idle, "dead": dead, "hanging": hanging})
    names = [*supervisors.pooled, "gone"]
    found = await PooledSupervisors(supervisors, 7).find(names, ["x", "y"])
    living = [each for each in found if isinstance(each, Found)]
    assert len(living) == len(found)
    assert [(each.supervisor.actor, each.attempts) for each in living] == [
        (busy, ["x"]),
        (idle, []),
    ]
    assert (busy.epoch, idle.epoch) == (7, 7)
    assert supervisors.ended == [hanging]


async def test_search_that_fails_leaves_nothing_behind() -> None:
    slow = FakeSupervisor([])
    slow.answers.clear()
    supervisors = FakeSupervisors({"slow": slow})
    supervisors.broken = {"lost"}
    maker = PooledSupervisors(supervisors, 7)
    searching = asyncio.ensure_future(maker.find(["lost", "slow"], []))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not searching.done()
    slow.answers.set()
    with pytest.raises(ConnectionError):
        await searching
    supervisors.broken = set()
    [found] = await maker.find(["lost", "slow"], [])
    assert isinstance(found, Found)
    assert found.supervisor.actor is slow


async def test_nobody_waits_for_a_supervisor_that_does_not_live_yet() -> None:
    coming, outdated = FakeSupervisor([]), FakeSupervisor([])
    for each in (coming, outdated):
        each.is_born = False
        each.answers.clear()
    current = CURRENT_PREFIX + "1"
    supervisors = FakeSupervisors({current: coming, "of another version": outdated})
    maker = PooledSupervisors(supervisors, 7)
    assert await maker.find(list(supervisors.pooled), []) == [Unborn(coming)]
    assert supervisors.ended == [outdated]
    pool = Pool(maker, PoolSettings(warm=1, starts_at_once=2))
    pool.expect(maker.welcome(coming))
    pool.fill()
    acquiring = asyncio.ensure_future(pool.acquire())
    coming.answers.set()
    # Another one would have been made by a class that isn't there.
    assert (await asyncio.wait_for(acquiring, 5)).handle.actor is coming
    assert coming.epoch == 7


async def test_step_is_repeated_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "FIRST_RETRY_S", 0.001)
    tries = 0

    async def step() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError("the KV is away")

    await until_done(step)
    assert tries == 3


async def test_superseded_manager_gives_up() -> None:
    async def step() -> None:
        raise Superseded

    with pytest.raises(Superseded):
        await until_done(step)


def test_collector_is_back_after_a_failure() -> None:
    def fail() -> None:
        with without_collector():
            assert not gc.isenabled()
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert gc.isenabled()
