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
from ray_jobs.manager.recovery import until_done, without_collector
from ray_jobs.manager.seats import PooledSupervisors
from ray_jobs.manager.supervisors import Supervisors


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

    async def _describe(self, epoch: int, live: Sequence[str] = ()) -> dict[str, Any]:
        await self.answers.wait()
        if self.trouble is not None:
            raise self.trouble
        self.epoch = epoch
        return {"attempts": [each for each in self.attempts if each in live]}

    async def _open_channel(self) -> str:
        raise OSError("no channel")


@pytest.fixture(autouse=True)
def no_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray, "actor_id", lambda actor: str(id(actor)))
    monkeypatch.setattr(seats, "forget_channel", lambda _: None)


class FakeSupervisors(Supervisors):
    def __init__(self, pooled: dict[str, FakeSupervisor]) -> None:
        self.pooled = pooled
        self.ended: list[FakeSupervisor] = []
        self.broken: set[str] = set()
        self.next: FakeSupervisor | None = None

    async def create_pooled(self) -> FakeSupervisor:
        assert self.next is not None
        return self.next

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


def maker(supervisors: FakeSupervisors) -> PooledSupervisors:
    return PooledSupervisors(supervisors, 7, lambda: None)


async def test_pool_of_an_earlier_manager_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "TAKE_OVER_TIMEOUT_S", 0.05)
    busy, idle = FakeSupervisor(["x", "old"]), FakeSupervisor([])
    dead, hanging = FakeSupervisor([], ActorDiedError()), FakeSupervisor(["y"])
    hanging.answers.clear()
    supervisors = FakeSupervisors({"busy": busy, "idle": idle, "dead": dead, "hanging": hanging})
    names = [*supervisors.pooled, "gone"]
    found = await maker(supervisors).find(names, ["x", "y"])
    assert [(each.supervisor.actor, each.attempts) for each in found] == [(busy, ["x"]), (idle, [])]
    assert (busy.epoch, idle.epoch) == (7, 7)
    assert supervisors.ended == [hanging]


async def test_search_that_fails_leaves_nothing_behind() -> None:
    slow = FakeSupervisor([])
    slow.answers.clear()
    supervisors = FakeSupervisors({"slow": slow})
    supervisors.broken = {"lost"}
    searching = asyncio.ensure_future(maker(supervisors).find(["lost", "slow"], []))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not searching.done()
    slow.answers.set()
    with pytest.raises(ConnectionError):
        await searching
    supervisors.broken = set()
    [found] = await maker(supervisors).find(["lost", "slow"], [])
    assert found.supervisor.actor is slow


async def test_a_supervisor_that_does_not_live_yet_is_not_waited_for() -> None:
    coming = FakeSupervisor([])
    coming.is_born = False
    coming.answers.clear()
    supervisors = FakeSupervisors({"coming": coming})
    assert await maker(supervisors).find(["coming"], []) == []
    assert supervisors.ended == [coming]


async def test_new_supervisor_that_obeys_a_later_manager_is_left_to_it() -> None:
    taken, broken = FakeSupervisor([], Superseded()), FakeSupervisor([], RuntimeError())
    supervisors = FakeSupervisors({})
    superseded: list[bool] = []
    making = PooledSupervisors(supervisors, 7, lambda: superseded.append(True))
    supervisors.next = taken
    with pytest.raises(Superseded):
        await making.make()
    assert superseded
    assert supervisors.ended == []
    supervisors.next = broken
    with pytest.raises(RuntimeError):
        await making.make()
    assert supervisors.ended == [broken]


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
