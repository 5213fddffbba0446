"""The channel between the faces and the manager: plugin and gateway are on the head as it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ray_jobs.channel import Channel, ChannelServer, Codec, forget_sockets
from ray_jobs.keeper.files import own_folder
from ray_jobs.keeper.sockets import listen, short_path

logger = logging.getLogger(__name__)

SOCKET_PREFIX = "manager-"
BACKLOG = 64


def _decode(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


MSGPACK = Codec(msgspec.msgpack.Encoder().encode, _decode)


async def serve_faces(
    methods: Mapping[str, Callable[..., Awaitable[bytes]]], directory: str, actor_id: str
) -> asyncio.Server | None:
    """Answer the faces of this node, in the place of whoever answered them before.

    The socket is named after the actor: one that was replaced may hang, and hold its own open.

    Returns None where that can't be: they call the manager as an actor then.
    """
    try:
        own_folder(directory)
        forget_sockets(directory, SOCKET_PREFIX)
        listener = listen(directory, socket_name(actor_id), BACKLOG)
        return await ChannelServer(methods, MSGPACK).serve(listener)
    except OSError:
        logger.exception("No channel can be served; the manager is called as an actor.")
        return None


def socket_name(actor_id: str) -> str:
    return f"{SOCKET_PREFIX}{actor_id}.sock"


async def connect_to_manager(directory: str, actor_id: str) -> Channel:
    """Connect to a manager on this node. Raises OSError where it doesn't listen."""
    with short_path(directory, socket_name(actor_id)) as path:
        return await Channel.connect(path, MSGPACK)
