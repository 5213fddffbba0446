"""The zygote: forks a keeper per job, and ends what a keeper leaves that is killed.

It is a subreaper, as each of its keepers: what a keeper that dies had below it becomes the
zygote's. So a child of the zygote that is no keeper is an orphan of a dead one. Standard library
only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import time

from ray_jobs.keeper.files import own_folder
from ray_jobs.keeper.keeper import KILL_GIVE_UP_S, Keeper, Raylet
from ray_jobs.keeper.processes import (
    Process,
    below,
    kill_all,
    oom_score,
    set_oom_score,
    watch_children,
)
from ray_jobs.keeper.sockets import (
    ORPHANS_SUFFIX,
    encode,
    listen,
    peer_is_trusted,
    read_line,
    short_path,
)

TYPE_CHECKING = False  # typing's own would cost every keeper its memory
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
#: What `ps` and `top` show. The kernel takes 15 bytes.
ZYGOTE_NAME = b"ray-jobs-zygote"
KEEPER_NAME = b"ray-jobs-keeper"
#: Looked up once, not by every keeper.
libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def keep(connection: socket.socket, raylet: Raylet, zygote: str) -> None:
    """Run a keeper: the whole life of a forked child of the zygote."""
    libc.prctl(PR_SET_NAME, KEEPER_NAME, 0, 0, 0)
    os.setsid()
    become_subreaper()
    line = read_line(connection)
    if line is not None:
        Keeper(json.loads(line), connection, raylet, zygote).run()


def is_childless() -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return False
    return True


class Zygote:
    """See the module.

    Args:
        orphans_listener: Who connects here gets a line once no orphan is left.
    """

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        orphans_listener: socket.socket,
        lock_fd: int,
        raylet: Raylet,
    ) -> None:
        self.name = name
        self.listener = listener
        self.orphans_listener = orphans_listener
        self.lock_fd = lock_fd
        self.raylet = raylet
        self.wake_fds = watch_children()
        self.keepers: set[int] = set()
        #: Orphans that it may not kill: somebody else's.
        self.out_of_reach: set[int] = set()
        self.waiters: list[socket.socket] = []

    def serve(self) -> None:
        """Fork keepers until the raylet is dead, then stay until the last one has ended its job."""
        poller = select.poll()
        for readable in (self.listener, self.orphans_listener, self.wake_fds[0]):
            poller.register(readable, select.POLLIN)
        self.raylet.register(poller)
        while not self.raylet.dead:
            ready = {fd for fd, _ in poller.poll(self.raylet.timeout_ms())}
            self.raylet.is_dead(ready)
            self.attend_to_orphans(ready)
            if self.listener.fileno() in ready and not self.raylet.dead:
                self.accept()
        poller.unregister(self.listener)
        if self.raylet.fd is not None:
            poller.unregister(self.raylet.fd)
        deadline = time.monotonic() + KILL_GIVE_UP_S
        while self.keepers or self.orphans():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            ready = {fd for fd, _ in poller.poll(left_s * 1000)}
            self.attend_to_orphans(ready)

    # --- orphans ----------------------------------------------------------------------------------

    def orphans(self) -> list[Process]:
        """Return what dead keepers have left, with all that is below."""
        return below([os.getpid()], without=self.keepers | self.out_of_reach)

    def attend_to_orphans(self, ready: set[int]) -> None:
        """Look for orphans if there may be some: a keeper or an orphan has died, somebody asks."""
        looks = False
        if self.wake_fds[0] in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_fds[0], 4096)
            looks = self.reap()
        if self.orphans_listener.fileno() in ready:
            looks = self.accept_waiter() or looks
        # Those that are killed wake it again.
        if looks and not self.kill_orphans():
            self.answer_waiters()

    def kill_orphans(self) -> bool:
        """Kill all orphans. Returns whether there were some."""
        while True:
            found, out_of_reach = kill_all(self.orphans)
            if not out_of_reach:
                return bool(found)
            self.out_of_reach |= out_of_reach

    def reap(self) -> bool:
        """Take the exit statuses of children. Returns whether orphans may have come or gone."""
        looks = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return looks
            if pid == 0:
                return looks
            # A keeper that leaves a child, or is killed, doesn't end with 0.
            looks = looks or status != 0 or pid not in self.keepers
            self.keepers.discard(pid)
            self.out_of_reach.discard(pid)

    def accept_waiter(self) -> bool:
        try:
            waiter, _ = self.orphans_listener.accept()
        except OSError:  # it went away again
            return False
        if not peer_is_trusted(waiter):
            waiter.close()
            return False
        self.waiters.append(waiter)
        return True

    def answer_waiters(self) -> None:
        for waiter in self.waiters:
            with contextlib.suppress(OSError):
                waiter.sendall(b"\n")
            waiter.close()
        self.waiters.clear()

    # --- keepers ----------------------------------------------------------------------------------

    def accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # it went away again
            return
        with connection:
            if not peer_is_trusted(connection):
                return
            try:
                pid = os.fork()
            except OSError as error:
                message = {"state": "failed_to_start", "error": f"fork: {error}"}
                with contextlib.suppress(OSError):
                    connection.sendall(encode(message))
                return
            if pid == 0:
                self.become_keeper(connection)
            self.keepers.add(pid)

    def become_keeper(self, connection: socket.socket) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (self.listener, self.orphans_listener, *self.waiters):
                each.close()
            for fd in (self.lock_fd, *self.wake_fds):
                os.close(fd)
            keep(connection, self.raylet, self.name)
        except Exception as error:  # noqa: BLE001 - told to who gave the order
            message = {"state": "failed_to_start", "error": f"keeper: {error}"}
            with contextlib.suppress(OSError):
                connection.sendall(encode(message))
        finally:
            os._exit(0 if is_childless() else 1)


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
    orphans_listener = listen(directory, name + ORPHANS_SUFFIX, 1024)
    listener = listen(directory, name, 1024)
    if os.fork() != 0:
        return
    os.setsid()
    # Who reads there waits for its end.
    silent_fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent_fd, 2)
    os.close(silent_fd)
    libc.prctl(PR_SET_NAME, ZYGOTE_NAME, 0, 0, 0)
    become_subreaper()
    # Ray makes its workers the first victims of the kernel's OOM killer. A keeper, which inherits
    # the zygote's score, must outlive its job, to report it. No container lets it have less than
    # the raylet.
    set_oom_score(max(0, oom_score(raylet_pid) or 0))
    os.chdir("/")
    zygote = Zygote(name, listener, orphans_listener, lock_fd, Raylet(raylet_pid))
    gc.collect()
    gc.freeze()
    zygote.serve()
    for each in (name, name + ORPHANS_SUFFIX):
        with short_path(directory, each) as path, contextlib.suppress(FileNotFoundError):
            os.unlink(path)
