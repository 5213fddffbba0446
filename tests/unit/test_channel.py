"""Channels, between two ends in one process."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ray_jobs.channel import CallFailed, Channel, ChannelServer
from ray_jobs.manager.face_channel import MSGPACK, connect_to_manager, serve_faces


class Calls:
    """What is served."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def echo(self, *arguments: Any) -> Any:
        return list(arguments)

    async def wait(self) -> str:
        await self.released.wait()
        return "released"

    async def unspeakable(self) -> Any:
        return object()

    async def fail(self) -> None:
        raise OSError("no space left")


@pytest.fixture
async def calls() -> Calls:
    return Calls()


@pytest.fixture
def address() -> str:
    return f"\0ray-jobs-test-{uuid.uuid4().hex}"


@pytest.fixture
async def channel(calls: Calls, address: str) -> AsyncIterator[Channel]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(8)
    served = (calls.echo, calls.wait, calls.fail, calls.unspeakable)
    server = await ChannelServer({each.__name__: each for each in served}).serve(listener)
    channel = await Channel.connect(address)
    yield channel
    calls.released.set()
    await ended(channel, server)


async def ended(channel: Channel, server: asyncio.Server) -> None:
    """End both, and wait until their sockets are closed."""
    channel.abort()
    server.close()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=5)
    for _ in range(3):  # closing a transport takes the loop's next turns
        await asyncio.sleep(0)


async def test_answers_find_their_calls(calls: Calls, channel: Channel) -> None:
    waiting = asyncio.ensure_future(channel.call("wait"))
    answers = await asyncio.gather(*(channel.call("echo", i, "ä\ud800") for i in range(100)))
    assert answers == [[i, "ä\ud800"] for i in range(100)]
    assert not waiting.done()
    calls.released.set()
    assert await waiting == "released"


async def test_failures_are_told_and_end_nothing(channel: Channel) -> None:
    with pytest.raises(CallFailed, match="no space left"):
        await channel.call("fail")
    with pytest.raises(CallFailed, match="not JSON serializable"):
        await channel.call("unspeakable")
    with pytest.raises(CallFailed, match="nothing_such"):
        await channel.call("nothing_such")
    with pytest.raises(CallFailed):
        await channel.call("wait", "one too many")
    assert await channel.call("echo", 1) == [1]


async def test_who_waits_hears_of_the_end(channel: Channel) -> None:
    waiting = asyncio.ensure_future(channel.call("wait"))
    await asyncio.sleep(0)
    channel.abort()
    with pytest.raises(ConnectionError):
        await waiting
    assert not channel.is_open
    with pytest.raises(ConnectionError):
        await channel.call("echo")


async def test_garbage_ends_its_own_connection_only(channel: Channel, address: str) -> None:
    for garbage in (b"\xff" * 64, b"\0\0\0\2{}", b"\0\0\0\4nope", b"\0\0\0\3[1]"):
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(garbage)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert await channel.call("echo", 1) == [1]


async def test_large_messages(channel: Channel) -> None:
    text = "x" * 3_000_000
    assert await channel.call("echo", text) == [text]


async def test_a_cancelled_call_disturbs_no_other(calls: Calls, channel: Channel) -> None:
    waiting = asyncio.ensure_future(channel.call("wait"))
    await asyncio.sleep(0)
    waiting.cancel()
    calls.released.set()
    assert await channel.call("echo", 2) == [2]


async def test_faces_find_the_manager_in_its_folder(calls: Calls, tmp_path: Any) -> None:
    folder = str(tmp_path / ("long" * 50))
    with pytest.raises(OSError, match="No such file"):
        await connect_to_manager(folder, "a1")
    server = await serve_faces({"echo": calls.echo}, folder, "a1")
    assert server is not None
    assert os.stat(folder).st_mode & 0o077 == 0
    channel = await connect_to_manager(folder, "a1")
    assert await channel.call("echo", b"\0\xff") == [b"\0\xff"]
    successor = await serve_faces({"echo": calls.echo}, folder, "b2")
    assert successor is not None
    with pytest.raises(OSError, match="No such file"):
        await connect_to_manager(folder, "a1")
    assert await channel.call("echo", 1) == [1]
    await ended(channel, server)
    successor.close()
    await successor.wait_closed()


def test_what_is_no_msgpack_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="truncated"):
        MSGPACK.decode(b"\x92\x01")
