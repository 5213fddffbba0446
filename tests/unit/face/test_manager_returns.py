"""Calls of a manager that is being restarted: real sockets, and Ray's actor in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray_jobs.dashboard_module import manager_link
from ray_jobs.dashboard_module.manager_link import CHANNEL_TRIES, RayManager

from ray_jobs.errors import ServerNotReady
from ray_jobs.keeper.sockets import listen
from ray_jobs.manager.face_channel import serve_faces, socket_name
from tests.unit.manager.memory_kv import MemoryKv

ACTOR_ID = "a"
PATIENCE_S = 10.0


class Method:
    """A method of an actor that answers when it is told to."""

    def __init__(self, answer: Callable[[], Awaitable[bytes]]) -> None:
        self._answer = answer
        self.calls = 0
        self.called = asyncio.Event()

    def options(self, *, max_task_retries: int) -> Method:
        assert max_task_retries == -1
        return self

    def remote(self, *args: Any) -> Awaitable[bytes]:
        self.calls += 1
        self.called.set()
        return self._answer()


class Manager:
    """The handle of a manager that Ray restarts."""

    def __init__(self) -> None:
        self.returned = asyncio.Event()
        self.is_dead = False
        self.accepts = Method(self._accepts)
        self.stop = Method(self._stop)

    def __str__(self) -> str:
        return ACTOR_ID

    async def _accepts(self) -> bytes:
        await self.returned.wait()
        if self.is_dead:
            raise ActorDiedError()
        return b""

    async def _stop(self) -> bytes:
        return b"as an actor"


class Server:
    """The side of the manager that listens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: asyncio.Server | None = None
        self.calls: list[str] = []

    async def start(self) -> None:
        self._server = await serve_faces({"stop": self._stop}, str(self._folder), ACTOR_ID)
        assert self._server is not None

    async def _stop(self, submission_id: str) -> bytes:
        self.calls.append(submission_id)
        return b"by the channel"

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


async def waited_for(manager: Manager) -> None:
    """Return once somebody waits for a manager."""
    await asyncio.wait_for(manager.accepts.called.wait(), PATIENCE_S)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Manager:
    manager = Manager()
    monkeypatch.setattr(manager_link, "find_manager", lambda: manager)
    monkeypatch.setattr(manager_link, "start_manager", lambda: manager)
    monkeypatch.setattr(manager_link, "work_dir", lambda: str(tmp_path))
    monkeypatch.setattr("ray_jobs._ray.actor_id", str)
    return manager


@pytest.fixture
def link(manager: Manager) -> RayManager:
    return RayManager(MemoryKv(), lambda: None, beside_ray=False)


async def test_its_channel_is_used_as_soon_as_it_listens(
    manager: Manager, link: RayManager, tmp_path: Path
) -> None:
    """Before Ray repeats what it was called as an actor."""
    # What one that was killed leaves.
    listen(str(tmp_path), socket_name(ACTOR_ID), 1).close()
    calls = [asyncio.ensure_future(link.stop(f"job-{number}")) for number in range(3)]
    await waited_for(manager)
    server = Server(tmp_path)
    await server.start()
    try:
        assert await asyncio.gather(*calls) == [b"by the channel"] * 3
        assert await link.stop("later") == b"by the channel"
    finally:
        server.close()
    assert sorted(server.calls) == ["job-0", "job-1", "job-2", "later"]
    assert (manager.accepts.calls, manager.stop.calls) == (1, 0)


async def test_one_that_has_no_channel_is_called_as_an_actor(
    manager: Manager, link: RayManager
) -> None:
    call = asyncio.ensure_future(link.stop("job"))
    await waited_for(manager)
    manager.returned.set()
    assert await call == b"as an actor"
    assert (manager.accepts.calls, manager.stop.calls) == (1, 1)


async def test_one_that_is_dead_for_good(
    manager: Manager, link: RayManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = asyncio.ensure_future(link.stop("job"))
    await waited_for(manager)
    manager.is_dead = True
    manager.returned.set()
    with pytest.raises(ServerNotReady):
        await call
    another = Manager()
    another.returned.set()
    monkeypatch.setattr(manager_link, "start_manager", lambda: another)
    monkeypatch.setattr(manager_link, "find_manager", lambda: None)
    assert await link.stop("job") == b"as an actor"
    assert another.stop.calls == 1


async def test_a_call_under_way_is_repeated_by_the_next_channel(
    manager: Manager, link: RayManager, tmp_path: Path
) -> None:
    died = asyncio.Event()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)  # the call has come
        writer.close()
        first.close()
        died.set()

    listener = listen(str(tmp_path), socket_name(ACTOR_ID), 8)
    first = await asyncio.start_unix_server(die, sock=listener)
    call = asyncio.ensure_future(link.stop("job"))
    await asyncio.wait_for(died.wait(), PATIENCE_S)
    await waited_for(manager)
    server = Server(tmp_path)
    await server.start()
    try:
        assert await call == b"by the channel"
    finally:
        server.close()
    assert server.calls == ["job"]
    assert manager.stop.calls == 0


async def test_a_call_that_is_given_up_leaves_the_others_waiting(
    manager: Manager, link: RayManager
) -> None:
    calls = [asyncio.ensure_future(link.stop(f"job-{number}")) for number in range(2)]
    await waited_for(manager)
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    assert calls[0].cancelled()
    manager.returned.set()
    assert await calls[1] == b"as an actor"


async def test_one_that_takes_no_calls_of_this_user(
    manager: Manager, link: RayManager, tmp_path: Path
) -> None:
    """It accepts, and hangs up."""
    hung_up = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hung_up
        hung_up += 1
        writer.close()

    listener = listen(str(tmp_path), socket_name(ACTOR_ID), 8)
    server = await asyncio.start_unix_server(hang_up, sock=listener)
    try:
        assert await link.stop("job") == b"as an actor"
    finally:
        server.close()
    assert hung_up <= 2 * CHANNEL_TRIES
