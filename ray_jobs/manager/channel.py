"""The channel: the manager's calls over a Unix socket of the head node.

An actor call costs its two processes about three milliseconds of CPU, this a tenth of that; and
the faces, plugin and gateway, are on the head as the manager is. It is a faster way to the same
calls, nothing else: a face that can't connect, or loses the connection, calls the actor, and Ray
repeats that while the manager is restarted.

A frame is its length, 4 bytes, and msgpack: `[number, method, arguments]` one way, `[number, is
an answer, answer or words of an error]` back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ray_jobs.keeper.sockets import listen, peer_is_trusted, short_path

logger = logging.getLogger(__name__)

SOCKET_NAME = "manager.sock"
#: No message is larger: a batch of changes has some 2,000 records, a submission 2 MiB.
MAX_FRAME_BYTES = 512 * 1024 * 1024
_LENGTH_BYTES = 4
_BACKLOG = 64

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    """Return the next message. Raises `ConnectionError` at the end, or for what is none."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if size > MAX_FRAME_BYTES:
            raise ConnectionError(f"A frame of {size} bytes.")
        message: list[Any] = _decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, msgspec.DecodeError) as error:
        raise ConnectionError(f"The channel has ended: {error}") from None
    return message


def write_frame(writer: asyncio.StreamWriter, message: list[Any]) -> None:
    data = _encode(message)
    writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


class ChannelServer:
    """Serves calls on the socket. Only this user and root may connect."""

    def __init__(self, methods: Mapping[str, Callable[..., Awaitable[bytes]]]) -> None:
        self._methods = methods
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, directory: str) -> None:
        """Listen in `directory`, in the place of whoever listened there before."""
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
            listener = listen(directory, SOCKET_NAME, _BACKLOG)
            self._server = await asyncio.start_unix_server(self._connected, sock=listener)
        except OSError:
            logger.exception("No channel can be served; the manager is called as an actor.")

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = asyncio.Lock()
        try:
            if not peer_is_trusted(writer.get_extra_info("socket")):
                return
            while True:
                number, method, arguments = await read_frame(reader)
                task = asyncio.ensure_future(self._answer(writer, turn, number, method, arguments))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (ConnectionError, ValueError, TypeError) as error:
            logger.info("A face has gone: %s", error)
        finally:
            writer.close()

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        turn: asyncio.Lock,
        number: int,
        method: str,
        arguments: list[Any],
    ) -> None:
        try:
            answer: list[Any] = [number, True, await self._methods[method](*arguments)]
        except Exception as error:
            logger.exception("%s failed.", method)
            answer = [number, False, f"{type(error).__name__}: {error}"]
        async with turn:  # who reads slowly holds up its own answers only
            with contextlib.suppress(ConnectionError):
                write_frame(writer, answer)
                await writer.drain()


class CallFailed(RuntimeError):
    """The manager failed at a call."""


class Channel:
    """One connection to the manager, for any number of calls at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._task = asyncio.ensure_future(self._read())

    @classmethod
    async def connect(cls, directory: str) -> Channel:
        """Connect to the manager of this node. Raises OSError where none listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not even for a moment: a backlog that is full is an error as well.
            connection.setblocking(False)
            with short_path(directory, SOCKET_NAME) as path:
                connection.connect(path)
            return cls(*await asyncio.open_unix_connection(sock=connection))
        except BaseException:
            connection.close()
            raise

    @property
    def is_open(self) -> bool:
        return not self._task.done()

    async def call(self, method: str, *arguments: Any) -> bytes:
        """Return the answer of a call. Raises `ConnectionError`, and `CallFailed`."""
        if not self.is_open:
            raise ConnectionError("The channel has ended.")
        self._number += 1
        number = self._number
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            write_frame(self._writer, [number, method, arguments])
            return await future
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _read(self) -> None:
        try:
            while True:
                number, is_answer, content = await read_frame(self._reader)
                future = self._waiting.get(number)
                if future is None or future.done():
                    continue  # who asked has gone
                if is_answer:
                    future.set_result(content)
                else:
                    future.set_exception(CallFailed(content))
        except (OSError, ValueError, TypeError) as error:
            logger.info("The manager's channel has ended: %s", error)
        finally:
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("The channel has ended."))
