"""Channels: calls of other processes of this node, over a Unix socket.

An actor call costs its two processes about three milliseconds of CPU, this a tenth of that. It is
a faster way to the same calls, nothing else: where it can't be had, the actor is called instead.

A frame is its length, 4 bytes, and a list: `[number, method, arguments]` one way, `[number, is an
answer, answer or words of an error]` back.

Standard library only: it is shipped with the supervisor (rule 8).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ray_jobs.keeper.sockets import peer_is_trusted

logger = logging.getLogger(__name__)

#: No message is larger: a batch of changes has some 2,000 records, a submission 2 MiB.
MAX_FRAME_BYTES = 512 * 1024 * 1024
_LENGTH_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Codec:
    """How the messages of a channel are encoded."""

    encode: Callable[[Any], bytes]
    #: Raises ValueError for what can't be decoded.
    decode: Callable[[bytes], Any]


JSON = Codec(lambda message: json.dumps(message).encode(), json.loads)


def forget_sockets(directory: str, prefix: str) -> None:
    """Remove the names of the sockets in a folder that begin so. Raises OSError."""
    for name in os.listdir(directory):
        if name.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))


async def read_frame(reader: asyncio.StreamReader, codec: Codec) -> list[Any]:
    """Return the next message. Raises `ConnectionError` at the end, or for what is none."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if size > MAX_FRAME_BYTES:
            raise ConnectionError(f"A frame of {size} bytes.")
        message: list[Any] = codec.decode(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ValueError) as error:
        raise ConnectionError(f"The channel has ended: {error}") from None
    return message


def encoded(codec: Codec, message: list[Any]) -> bytes:
    """Return a frame. Raises TypeError, ValueError, and OverflowError for what makes none."""
    data = codec.encode(message)
    if len(data) > MAX_FRAME_BYTES:
        raise OverflowError(f"{len(data)} bytes are too many for a frame.")
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class ChannelServer:
    """Serves calls on the socket. Only this user and root may connect."""

    def __init__(
        self, methods: Mapping[str, Callable[..., Awaitable[Any]]], codec: Codec = JSON
    ) -> None:
        self._methods = methods
        self._codec = codec
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        """Answer who connects to a socket that listens."""
        return await asyncio.start_unix_server(self._connected, sock=listener)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = asyncio.Lock()
        try:
            if not peer_is_trusted(writer.get_extra_info("socket")):
                return
            while True:
                number, method, arguments = await read_frame(reader, self._codec)
                task = asyncio.ensure_future(self._answer(writer, turn, number, method, arguments))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (ConnectionError, ValueError, TypeError) as error:
            logger.info("A caller has gone: %s", error)
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
        try:
            frame = encoded(self._codec, answer)
        except (TypeError, ValueError, OverflowError) as error:
            logger.exception("The answer of %s can't be sent.", method)
            frame = encoded(self._codec, [number, False, f"{type(error).__name__}: {error}"])
        async with turn:  # who reads slowly holds up its own answers only
            with contextlib.suppress(ConnectionError):
                writer.write(frame)
                await writer.drain()


class CallFailed(RuntimeError):
    """The other side failed at a call."""


class Channel:
    """One connection, for any number of calls at once."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: Codec
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._codec = codec
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._task = asyncio.ensure_future(self._read())

    @classmethod
    async def connect(cls, address: str, codec: Codec = JSON) -> Channel:
        """Connect to a Unix socket. Raises OSError where none of this user or root listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not even for a moment: a backlog that is full is an error as well.
            connection.setblocking(False)
            connection.connect(address)
            if not peer_is_trusted(connection):
                raise PermissionError("The socket is another user's.")
            return cls(*await asyncio.open_unix_connection(sock=connection), codec)
        except BaseException:
            connection.close()
            raise

    @property
    def is_open(self) -> bool:
        return not self._task.done()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Return the answer of a call. Raises `ConnectionError`, and `CallFailed`."""
        if not self.is_open:
            raise ConnectionError("The channel has ended.")
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._writer.write(encoded(self._codec, [number, method, arguments]))
            return await future
        finally:
            self._waiting.pop(number, None)

    def abort(self) -> None:
        """End the connection. Calls that wait get a `ConnectionError`."""
        self._task.cancel()
        self._writer.close()

    async def _read(self) -> None:
        try:
            while True:
                number, is_answer, content = await read_frame(self._reader, self._codec)
                future = self._waiting.get(number)
                if future is None or future.done():
                    continue  # who asked has gone
                if is_answer:
                    future.set_result(content)
                else:
                    future.set_exception(CallFailed(content))
        except (OSError, ValueError, TypeError) as error:
            logger.info("A channel has ended: %s", error)
        finally:
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("The channel has ended."))
