"""Sockets between supervisor, zygote and keeper. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct

from ray_jobs.keeper.files import need_own

TYPE_CHECKING = False  # typing's own would cost every keeper its memory
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_ORDER_BYTES = 64 * 1024 * 1024
#: An order fits nearly always; more would be memory of its own for each keeper.
READ_BYTES = 64 * 1024
#: Behind the name of a zygote's socket: the one where it tells that no orphan is left.
ORPHANS_SUFFIX = ".orphans"


@contextlib.contextmanager
def short_path(directory: str, name: str) -> Iterator[str]:
    """Yield a path to `directory/name` that fits into a socket address (108 bytes).

    Raises OSError, `PermissionError` for another user's folder.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        need_own(os.fstat(fd), stat.S_IFDIR, directory)
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen(directory: str, name: str, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(directory, name) as path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.fchmod(listener.fileno(), 0o600)  # which the file gets by bind
        listener.bind(path)
    listener.listen(backlog)
    return listener


def peer_is_trusted(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.getuid())


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def read_line(connection: socket.socket) -> bytes | None:
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = connection.recv(READ_BYTES)
        if not chunk or len(data) > MAX_ORDER_BYTES:
            return None
        data += chunk
    return bytes(data)
