"""The zygote: forks a keeper per job. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket

from ray_jobs.keeper.files import own_folder
from ray_jobs.keeper.keeper import Keeper, Raylet
from ray_jobs.keeper.sockets import encode, listen, peer_is_trusted, read_line, short_path

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
#: What `ps` and `top` show. The kernel takes 15 bytes.
ZYGOTE_NAME = b"ray-jobs-zygote"
KEEPER_NAME = b"ray-jobs-keeper"
#: Looked up once, not by every keeper.
libc = ctypes.CDLL(None, use_errno=True)


def keep(connection: socket.socket, raylet: Raylet) -> None:
    """Run a keeper: the whole life of a forked child of the zygote."""
    os.setsid()
    libc.prctl(PR_SET_NAME, KEEPER_NAME, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    # Ray makes its workers the first victims of the kernel's OOM killer. The keeper must outlive
    # its job, to report it; lowering the score needs privileges.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    line = read_line(connection)
    if line is not None:
        Keeper(json.loads(line), connection, raylet).run()


def serve(listener: socket.socket, lock_fd: int, raylet: Raylet) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    raylet.register(poller)
    gc.collect()
    gc.freeze()
    while not raylet.dead:
        ready = {fd for fd, _ in poller.poll(raylet.timeout_ms())}
        if raylet.is_dead(ready):
            return
        if listener.fileno() not in ready:
            continue
        try:
            connection, _ = listener.accept()
        except OSError:  # it went away again
            continue
        with connection:
            if not peer_is_trusted(connection):
                continue
            try:
                pid = os.fork()
            except OSError as error:
                message = {"state": "failed_to_start", "error": f"fork: {error}"}
                with contextlib.suppress(OSError):
                    connection.sendall(encode(message))
                continue
            if pid == 0:
                listener.close()
                os.close(lock_fd)
                code = 1
                try:
                    keep(connection, raylet)
                    code = 0
                except Exception as error:  # noqa: BLE001 - told to who gave the order
                    message = {"state": "failed_to_start", "error": f"keeper: {error}"}
                    with contextlib.suppress(OSError):
                        connection.sendall(encode(message))
                finally:
                    os._exit(code)


def run_zygote(directory: str, name: str, raylet_pid: int) -> None:
    """Become the node's zygote, or return at once if there is one.

    Returns in the caller's direct child once the socket listens; the zygote itself is a grandchild
    in a session of its own, which no mechanism of Ray's reaches.
    """
    own_folder(directory)
    lock_fd = os.open(os.path.join(directory, name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    listener = listen(directory, name, 1024)
    if os.fork() != 0:
        return
    os.setsid()
    libc.prctl(PR_SET_NAME, ZYGOTE_NAME, 0, 0, 0)
    os.chdir("/")
    serve(listener, lock_fd, Raylet(raylet_pid))
    with short_path(directory, name) as path, contextlib.suppress(FileNotFoundError):
        os.unlink(path)
