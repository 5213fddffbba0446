"""Finding, starting and replacing the manager, with Ray's actors in memory."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from ray_jobs.dashboard_module import manager_link
from ray_jobs.dashboard_module.manager_link import RayManager, is_outdated, replace_manager

from ray_jobs.claims import KV_NAMESPACE, VERSION, Claim
from ray_jobs.errors import ServerNotReady
from tests.unit.manager.memory_kv import MemoryKv

OLD, NEW = "0.0.1", "99.0"


class Actors:
    """The cluster's actors: one at most has the manager's name. Handles are their ids."""

    def __init__(self) -> None:
        self.named: str | None = None
        self.started = 0
        self.killed: list[str] = []
        #: So often the name of a dead one is still found.
        self.name_lingers = 0
        self.connections = 0
        self._lock = threading.Lock()

    def connect(self) -> None:
        self.connections += 1

    def find(self) -> str | None:
        return self.named

    def start(self) -> str:
        with self._lock:
            if self.named in self.killed:
                self.name_lingers -= 1
                if self.name_lingers < 0:
                    self.named = None
            if self.named is None:
                self.started += 1
                self.named = f"started-{self.started}"
            return self.named

    def kill(self, actor: str, *, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(actor)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    actors = Actors()
    monkeypatch.setattr(manager_link, "find_manager", actors.find)
    monkeypatch.setattr(manager_link, "start_manager", actors.start)
    monkeypatch.setattr("ray.kill", actors.kill)
    monkeypatch.setattr("ray_jobs._ray.actor_id", str)
    monkeypatch.setattr(manager_link, "NAME_RETRY_S", 0.001)
    return actors


@pytest.fixture
def kv() -> MemoryKv:
    return MemoryKv()


def claim(kv: MemoryKv, epoch: int, version: str, actor: str) -> None:
    kv.data[KV_NAMESPACE, f"epoch:{epoch}"] = Claim(version, actor).encoded()


def link(kv: Any, actors: Actors) -> RayManager:
    return RayManager(kv, actors.connect, beside_ray=False)


@pytest.mark.parametrize(
    ("version", "actor", "outdated"),
    [
        (OLD, "a", True),
        (OLD, "another", False),
        (VERSION, "a", False),
        (NEW, "a", False),
        ("unknown", "a", False),
    ],
)
def test_is_outdated(actors: Actors, version: str, actor: str, outdated: bool) -> None:
    del actors
    assert is_outdated("a", Claim(version, actor)) is outdated


async def test_a_cluster_that_was_never_used_costs_nothing(actors: Actors, kv: MemoryKv) -> None:
    assert await link(kv, actors).attach(create=False) is False
    assert (actors.connections, actors.started) == (0, 0)


async def test_one_is_started_when_it_is_needed_or_was_there(actors: Actors, kv: MemoryKv) -> None:
    assert await link(kv, actors).attach(create=True) is True
    claim(kv, 1, VERSION, "started-1")
    actors.named = None
    assert await link(kv, actors).attach(create=False) is True
    assert actors.started == 2


@pytest.mark.parametrize("version", [VERSION, NEW])
async def test_one_that_is_not_older_is_never_killed(
    actors: Actors, kv: MemoryKv, version: str
) -> None:
    actors.named = "a"
    claim(kv, 1, OLD, "before")
    claim(kv, 2, version, "a")
    assert await link(kv, actors).attach(create=True) is True
    assert actors.killed == []


async def test_an_older_one_is_replaced(actors: Actors, kv: MemoryKv) -> None:
    actors.named, actors.name_lingers = "a", 3
    claim(kv, 1, OLD, "a")
    assert await link(kv, actors).attach(create=False) is True
    assert (actors.killed, actors.named) == (["a"], "started-1")


async def test_one_that_was_restarted_with_the_new_code_meanwhile_is_left(
    actors: Actors, kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(kv, 1, OLD, "a")

    def find() -> str:
        claim(kv, 2, VERSION, "a")  # Ray keeps its id
        return "a"

    monkeypatch.setattr(manager_link, "find_manager", find)
    assert await link(kv, actors).attach(create=True) is True
    assert actors.killed == []


async def test_one_that_was_restarted_with_the_old_code_is_replaced(
    actors: Actors, kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(kv, 1, "0.0.0", "a")

    def find() -> str:
        claim(kv, 2, OLD, "a")
        return "a"

    actors.named = "a"
    monkeypatch.setattr(manager_link, "find_manager", find)
    assert await link(kv, actors).attach(create=True) is True
    assert actors.killed == ["a"]


def test_two_faces_at_once_find_the_same_successor(actors: Actors) -> None:
    actors.named, actors.name_lingers = "a", 5
    found: list[Any] = []
    faces = [threading.Thread(target=lambda: found.append(replace_manager("a"))) for _ in range(2)]
    for face in faces:
        face.start()
    for face in faces:
        face.join()
    assert found == ["started-1", "started-1"]
    assert actors.started == 1


def test_a_name_that_is_never_freed(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_link, "NAME_TIMEOUT_S", 0.05)
    actors.named, actors.name_lingers = "a", 10**9
    assert replace_manager("a") == "a"


async def test_a_search_that_takes_too_long_is_not_begun_twice(
    actors: Actors, kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, searches = threading.Event(), 0

    def find() -> str:
        nonlocal searches
        searches += 1
        assert may_go_on.wait(10)
        return "a"

    monkeypatch.setattr(manager_link, "CALL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(manager_link, "find_manager", find)
    claim(kv, 1, VERSION, "a")
    face = link(kv, actors)
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(ServerNotReady):
            await face.stop("x")
        with pytest.raises(ServerNotReady):
            await face.attach(create=False)
    assert time.monotonic() - began < 5
    may_go_on.set()
    assert await face.attach(create=True) is True
    assert await face.attach(create=False) is True
    assert searches == 1


async def test_a_failed_search_is_begun_anew(actors: Actors, kv: MemoryKv) -> None:
    failures = [OSError("the GCS is gone")]

    def connect() -> None:
        if failures:
            raise failures.pop()
        actors.connect()

    face = RayManager(kv, connect, beside_ray=False)
    with pytest.raises(ServerNotReady):
        await face.attach(create=True)
    assert await face.attach(create=True) is True
