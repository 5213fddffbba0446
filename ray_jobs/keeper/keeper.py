"""The keeper: the parent of one job's entrypoint, and a subreaper. Standard library only.

See the package's docstring for its protocol.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import time

from ray_jobs.keeper.clock import BOOT_ID, boot_ms, wall_ms
from ray_jobs.keeper.entrypoint import explained, start_entrypoint
from ray_jobs.keeper.files import CONTROL_SOCKET, KEEPER_LINK, STATUS_FILE, open_to_write
from ray_jobs.keeper.processes import (
    Process,
    below,
    identity_of,
    kill_all,
    send_signal,
    watch_children,
)
from ray_jobs.keeper.sockets import encode, listen, peer_is_trusted

TYPE_CHECKING = False  # typing's own would cost every keeper its memory
if TYPE_CHECKING:
    import socket
    from typing import Any

STATUS_BYTES = 2048
#: With so little room left on the disk under its log, a job is told that the log may be cut off.
LITTLE_ROOM_BYTES = 64 * 1024
#: How often a kernel without pidfd_open (before 5.3) is asked whether the raylet lives.
RAYLET_POLL_MS = 500
#: `poll` takes no more than 2**31 ms. It is asked again until the time has come.
LONGEST_POLL_MS = 24 * 3600 * 1000
#: Between two rounds of killing. Each round is woken earlier by the death of a child.
KILL_ROUND_MS = 50
#: A process in uninterruptible sleep doesn't die: the end of the job is reported all the same.
KILL_GIVE_UP_S = 10.0


def has_little_room(folder: str) -> bool:
    """Return whether the disk under a folder is full, or nearly so."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    free_blocks = disk.f_bavail if os.geteuid() else disk.f_bfree  # some are root's alone
    # Some network disks don't tell.
    return disk.f_blocks > 0 and free_blocks * disk.f_frsize < LITTLE_ROOM_BYTES


class Raylet:
    """The node's raylet, whose death every process here must notice by itself.

    `ray stop` finds processes by their command line, and ours aren't among them.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd: int | None = None
        self.dead = False
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.dead = True
        except (AttributeError, OSError):
            self.fd = None

    def register(self, poller: select.poll) -> None:
        if self.fd is not None:
            poller.register(self.fd, select.POLLIN)

    def timeout_ms(self) -> int | None:
        return None if self.fd is not None else RAYLET_POLL_MS

    def is_dead(self, ready_fds: set[int]) -> bool:
        if self.fd is not None:
            self.dead = self.dead or self.fd in ready_fds
        elif not self.dead:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.dead = True
        return self.dead


class Keeper:
    """See the package.

    Args:
        zygote: The name of the socket of who forked it.
    """

    def __init__(
        self, order: dict[str, Any], connection: socket.socket, raylet: Raylet, zygote: str
    ) -> None:
        self.order = order
        self.raylet = raylet
        self.directory = order["directory"]
        self.connections = {connection.fileno(): (connection, bytearray())}
        self.status: dict[str, Any] = {
            "state": "starting",
            "attempt": order["attempt"],
            "zygote": zygote,
        }
        self.entrypoint_pid: int | None = None
        self.exit_code: int | None = None
        self.stop_deadline: float | None = None
        self.stop_signal = 0
        #: Who has had the stop signal.
        self.signalled: set[Process] = set()
        self.kill_deadline: float | None = None
        self.childless = False

    def run(self) -> None:
        try:
            self.claim()
            self.make_status_file()
        except FileExistsError:
            self.broadcast({"state": "exists", "attempt": self.order["attempt"]})
            return
        except OSError as error:  # a full disk
            error = explained(error, "status file of the job in " + self.directory)
            self.broadcast({**self.status, "state": "failed_to_start", "error": str(error)})
            return
        self.listener = listen(self.directory, CONTROL_SOCKET, 16)
        self.listener.setblocking(False)
        self.wake_fd, _ = watch_children()
        try:
            self.entrypoint_pid = self.start()
        except OSError as error:
            self.status.update(state="failed_to_start", error=str(error))
            self.write_status()
            self.broadcast(self.status)
            return
        started_boot_ms = boot_ms()
        self.status.update(
            state="running",
            pid=self.entrypoint_pid,
            started_at_ms=wall_ms(),
            started_boot_ms=started_boot_ms,
        )
        self.write_status()
        self.broadcast(self.status)
        try:
            self.loop()
        except Exception as error:  # noqa: BLE001 - nothing may outlive its keeper
            kill_all(self.descendants)
            self.status.update(state="lost", error=f"keeper: {error}")
            self.write_status()
            self.broadcast(self.status)
            return
        ended_boot_ms = boot_ms()
        self.status.update(
            state="exited",
            code=self.exit_code,
            # By the clock that nobody sets: it ended so long after its start as it ran.
            ended_at_ms=self.status["started_at_ms"] + ended_boot_ms - started_boot_ms,
            ended_boot_ms=ended_boot_ms,
            boot_id=BOOT_ID,
            node_died=self.raylet.dead,
            log_disk_full=has_little_room(os.path.dirname(self.order["log_path"])),
        )
        self.write_status()
        self.broadcast(self.status)

    def claim(self) -> None:
        """Make the attempt this one's. Raises FileExistsError if it is another's."""
        os.mkdir(self.directory, 0o700)
        # Who finds the folder without the link makes it: this attempt isn't begun then.
        pid, start = identity_of(os.getpid())
        os.symlink(f"{pid} {start} {BOOT_ID}", os.path.join(self.directory, KEEPER_LINK))

    def make_status_file(self) -> None:
        """Make the status file, with all the blocks that it will need. Raises OSError."""
        path = os.path.join(self.directory, STATUS_FILE)
        self.status_fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if os.pwrite(self.status_fd, self.encoded_status(), 0) < STATUS_BYTES:
            raise OSError(errno.ENOSPC, "")

    def encoded_status(self) -> bytes:
        return json.dumps(self.status).encode().ljust(STATUS_BYTES - 1) + b"\n"

    def write_status(self) -> None:
        """Write the record in place: its blocks exist, so a full disk can't lose it.

        But where a file system writes nothing in place: who is connected is told all the same.
        """
        with contextlib.suppress(OSError):
            os.pwrite(self.status_fd, self.encoded_status(), 0)

    def broadcast(self, message: dict[str, Any]) -> None:
        for connection, _ in list(self.connections.values()):
            self.send(connection, message)

    def send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            connection.sendall(encode(message))
        except OSError:
            self.disconnect(connection)

    def disconnect(self, connection: socket.socket) -> None:
        self.connections.pop(connection.fileno(), None)
        connection.close()

    def start(self) -> int:
        """Start the entrypoint and return its pid. Raises OSError if it can't be executed."""
        log_fd = open_to_write(self.order["log_path"], os.O_APPEND)
        try:
            if self.order["log_header"]:
                with contextlib.suppress(OSError):  # a full disk isn't the job's fault
                    os.write(log_fd, self.order["log_header"].encode("utf-8", "surrogateescape"))
            return start_entrypoint(self.order, log_fd)
        finally:
            os.close(log_fd)

    def loop(self) -> None:
        """Serve orders until the entrypoint and everything that it started is gone."""
        while True:
            self.reap()
            if self.exit_code is not None and self.childless:
                return
            if self.exit_code is not None and self.stop_deadline is None:
                self.begin_killing()
            if self.kill_deadline is not None:
                kill_all(self.descendants)
                self.reap()
                if self.childless:
                    return
                if time.monotonic() > self.kill_deadline:
                    return
            self.wait_for_events()

    def begin_killing(self) -> None:
        if self.kill_deadline is None:
            self.kill_deadline = time.monotonic() + KILL_GIVE_UP_S

    def wait_for_events(self) -> None:
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        poller.register(self.listener, select.POLLIN)
        if not self.raylet.dead:
            self.raylet.register(poller)
        for fd in self.connections:
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(self.timeout_ms())}
        if self.wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_fd, 4096)
        if not self.raylet.dead and self.raylet.is_dead(ready):
            self.begin_killing()
        if self.stop_deadline is not None and time.monotonic() >= self.stop_deadline:
            self.begin_killing()
        if self.listener.fileno() in ready:
            self.accept()
        for fd in ready & set(self.connections):
            self.receive(fd)

    def timeout_ms(self) -> int | None:
        timeouts = [self.raylet.timeout_ms()]
        if self.kill_deadline is not None:
            timeouts.append(KILL_ROUND_MS)
        elif self.stop_deadline is not None:
            left_s = self.stop_deadline - time.monotonic()
            timeouts.append(max(0, int(min(left_s * 1000, LONGEST_POLL_MS)) + 1))
        return min((ms for ms in timeouts if ms is not None), default=None)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if pid == 0:
                return
            if pid == self.entrypoint_pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
                if self.stop_deadline is not None:
                    # What was started after the first look. Not earlier: it may have been
                    # started to clean up.
                    self.pass_stop_on()

    def accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # it went away again, or there is no descriptor left: it will try again
            return
        if not peer_is_trusted(connection):
            connection.close()
            return
        self.connections[connection.fileno()] = (connection, bytearray())
        self.send(connection, self.status)

    def receive(self, fd: int) -> None:
        connection, buffer = self.connections[fd]
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.disconnect(connection)
            return
        buffer += data
        while b"\n" in buffer:
            line, _, rest = bytes(buffer).partition(b"\n")
            buffer[:] = rest
            try:
                message = json.loads(line)
                if message["op"] == "stop":
                    self.stop(message["signal"], message["wait_s"])
            except (ValueError, KeyError, TypeError):
                self.disconnect(connection)
                return

    def stop(self, signum: int, wait_s: float) -> None:
        """Begin to stop, or, if that has begun, wait no longer than this order says."""
        deadline = time.monotonic() + wait_s
        if self.stop_deadline is not None:
            self.stop_deadline = min(self.stop_deadline, deadline)
            return
        if self.exit_code is not None:
            return
        self.status["stopped"] = True
        self.stop_deadline = deadline
        self.stop_signal = signum
        self.pass_stop_on()

    def pass_stop_on(self) -> None:
        """Send the stop signal to all below who haven't had it.

        Parents first: a shell whose child died before would say so, and begin the next command.
        """
        for process in self.descendants():
            if process not in self.signalled:
                self.signalled.add(process)
                send_signal(process, self.stop_signal)

    def descendants(self) -> list[Process]:
        return below([os.getpid()])
