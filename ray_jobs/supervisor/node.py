"""This node: its raylet, its folders, and the private Ray API of this side.

Ray's private API is used in the two functions that say so (rule 9): `ray_jobs/_ray` isn't
shipped to where a supervisor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterable
from typing import Any

import ray

from ray_jobs.keeper.clock import boot_ms, read_boot_id
from ray_jobs.keeper.files import KEEPER_LINK, STATUS_FILE, own_folder
from ray_jobs.keeper.processes import Process, ends_within, has_ended, identity_of
from ray_jobs.keeper.sockets import peer_is_trusted, short_path

#: What the link says of an attempt that no keeper may begin.
NOBODY = "nobody"
#: Written by the manager into the head's folder. A node that sees it shares the head's files, on
#: one machine or on a network disk, and its logs need no copy.
HEAD_TOKEN_FILE = "head-token"
CHANNEL_PREFIX = "supervisor-"


def session_dir() -> str:
    """Return this node's session folder. Ray has no public API for it."""
    path: str = ray._private.worker._global_node.get_session_dir_path()
    return path


def logs_dir() -> str:
    """Return this node's log folder. Ray has no public API for it."""
    path: str = ray._private.worker._global_node.get_logs_dir_path()
    return path


def work_dir() -> str:
    """Return the folder of our sockets and status files on this node."""
    return os.path.join(session_dir(), "ray_jobs")


def attempt_path(attempt_id: str) -> str:
    """Return the folder by which a keeper of this node claims an attempt."""
    return os.path.join(work_dir(), "attempts", attempt_id)


def raylet_pid() -> int:
    """Return the pid of this node's raylet, which started this worker."""
    return int(os.environ.get("RAY_RAYLET_PID") or os.getppid())


def raylet_lives() -> bool:
    """Return whether this node's raylet runs, or can't be told not to."""
    try:
        return not ends_within(identity_of(raylet_pid()), 0)
    except ProcessLookupError:
        return False
    except OSError:  # the kernel can't tell
        return True


async def connect_unix(
    directory: str, name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a Unix socket whose path may be longer than an address takes (108 bytes).

    Raises OSError, `PermissionError` where another user listens.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory, name) as path:
            connection.connect(path)
        if not peer_is_trusted(connection):
            raise PermissionError(f"The socket {name} in {directory} is another user's.")
    except OSError:
        connection.close()
        raise
    connection.setblocking(False)
    return await asyncio.open_unix_connection(sock=connection)


def attempt_dir(attempt_id: str) -> str:
    """Return the folder of an attempt, which need not be there; the one above it is made."""
    path = attempt_path(attempt_id)
    own_folder(work_dir())
    own_folder(os.path.dirname(path))
    return path


def claim(directory: str) -> bool:
    """Make an attempt's folder. Returns False if it is there: who makes it has the attempt."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return False
    return True


def is_claimed(directory: str) -> bool:
    """Return whether an attempt was begun on this node, or never will be."""
    return os.path.isdir(directory)


def never_begins(directory: str) -> bool:
    """Return whether a claimed attempt hasn't been begun, and make sure then that it never is."""
    if read_status(directory):  # of an earlier version's keeper too, which makes no link
        return False
    link = os.path.join(directory, KEEPER_LINK)
    try:
        os.symlink(NOBODY, link)
    except FileExistsError:
        # A keeper starts nothing before there is a status.
        return os.readlink(link) == NOBODY or (
            keeper_is_gone(directory) and not read_status(directory)
        )
    return True


def keeper_of(directory: str) -> Process | None:
    """Return the keeper that has begun an attempt.

    None if there was none, or it is one of an earlier version's or of another boot's.
    """
    try:
        pid, start, *boot = os.readlink(os.path.join(directory, KEEPER_LINK)).split(" ")
    except (OSError, ValueError):  # ValueError: nobody
        return None
    return (int(pid), int(start)) if boot == [read_boot_id()] else None


def keeper_is_gone(directory: str) -> bool:
    """Return whether the keeper that has begun an attempt has ended."""
    keeper = keeper_of(directory)
    return keeper is None or has_ended(keeper)


def dated(status: dict[str, Any], boot_id: str) -> dict[str, Any]:
    """Return a status that tells how long ago its attempt ended, if that is known.

    Other machines' wall clocks may be other than this one's.
    """
    if not boot_id or status.get("boot_id") != boot_id:
        return status
    return {**status, "ended_ago_ms": max(0, boot_ms() - status["ended_boot_ms"])}


def end_by_sigterm() -> None:
    """Have SIGTERM end this process at once, as SIGKILL does.

    Ray's handler waits for the end of all calls, and one of ours never ends: who is called as an
    actor doesn't answer any more then, and lives on.
    """
    # Python's own function is for the main thread alone, which runs no code of an actor.
    ctypes.CDLL(None).signal(signal.SIGTERM, None)


def forget(directory: str) -> None:
    """Remove an attempt's folder. No-op if there is none."""
    shutil.rmtree(directory, ignore_errors=True)


def attempts_here() -> list[str]:
    """Return the attempts that have a folder on this node."""
    try:
        return os.listdir(os.path.dirname(attempt_path("any")))
    except FileNotFoundError:
        return []


def channel_name(actor_id: str) -> str:
    """Return the name, in `work_dir`, of the socket by which a supervisor is called."""
    return f"{CHANNEL_PREFIX}{actor_id}.sock"


def forget_channel(actor_id: str) -> None:
    """Remove the name of a supervisor's socket. No-op if there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(work_dir(), channel_name(actor_id)))


def forget_ended(attempt_ids: Iterable[str]) -> None:
    """Remove the folders of attempts that have ended, in place of a supervisor that is dead.

    Not those without an end: an order to start it may be on its way still.
    """
    for attempt_id in attempt_ids:
        directory = attempt_path(attempt_id)
        if tells_end(read_status(directory)):
            forget(directory)


def tells_end(status: dict[str, Any]) -> bool:
    return status.get("state") in ("exited", "failed_to_start", "lost")


def read_text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def read_status(directory: str) -> dict[str, Any]:
    try:
        with short_path(directory, STATUS_FILE) as path, open(path, "rb") as file:
            status: dict[str, Any] = json.loads(file.read())
    except (FileNotFoundError, PermissionError, ValueError):
        return {}
    return status
