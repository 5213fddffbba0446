"""The channel between the faces and the manager: plugin and gateway are on the head as it is."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ray_jobs.channel import Channel, ChannelServer, Codec
from ray_jobs.keeper.sockets import listen, short_path

logger = logging.getLogger(__name__)

SOCKET_NAME = "manager.sock"
BACKLOG = 64


def _decode(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


MSGPACK = Codec(msgspec.msgpack.Encoder().encode, _decode)


async def serve_faces(
    methods: Mapping[str, Callable[..., Awaitable[bytes]]], directory: str
) -> asyncio.Server | None:
    """Answer the faces of this node, in the place of whoever answered them before.

    Returns None where that can't be: they call the manager as an actor then.
    """
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        listener = listen(directory, SOCKET_NAME, BACKLOG)
        return await ChannelServer(methods, MSGPACK).serve(listener)
    except OSError:
        logger.exception("No channel can be served; the manager is called as an actor.")
        return None


async def connect_to_manager(directory: str) -> Channel:
    """Connect to the manager of this node. Raises OSError where none listens."""
    with short_path(directory, SOCKET_NAME) as path:
        return await Channel.connect(path, MSGPACK)
