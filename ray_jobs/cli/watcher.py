"""The watcher of a gateway: holds its sockets, and starts it anew when it dies.

It imports neither ray nor aiohttp: it must outlive what goes wrong in there. Connections that come
while nobody serves wait in the sockets' backlog.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from ray_jobs.errors import RayJobsError
from ray_jobs.handover import READY_BYTES, Handover, Ready, runs, tell
from ray_jobs.own_python import COMMAND_LINE, python_command

#: How often the watcher looks whether the raylet lives: nobody tells it. In seconds.
NODE_CHECK_S = 0.25
#: A gateway that served for so long died of something else than the one before it.
LASTING_S = 10.0
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
#: How long the gateway may take to end, in seconds: told to, and when its cluster is gone.
END_TIMEOUT_S = 15.0
ORPHANED_TIMEOUT_S = 2.0


def watch(host: str, port: int, options: dict[str, Any], *, debug: bool = False) -> int:
    """Have the gateway served until SIGTERM or SIGINT, or the end of its cluster. Blocking.

    Args:
        options: Those of `ray-jobs serve`.

    Returns the exit code: that of the gateway if it can't start.
    Raises `RayJobsError` when the port is taken.
    """
    return Watcher(bound(host, port), options, debug=debug).run()


def bound(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of `host`, all with the same port, that doesn't listen yet.

    Nobody shall be connected before the gateway has found that it may serve there.
    """
    found: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError:  # the name has an IPv6 address, the kernel no IPv6
                continue
            found.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            same_port = port or found[0].getsockname()[1]
            listener.bind((address[0], same_port, *address[2:]))
    except OSError as error:
        for listener in found:
            listener.close()
        raise RayJobsError(f"Can't listen on {host}:{port}: {error.strerror}.") from None
    if not found:
        raise RayJobsError(f"Can't listen on {host}:{port}: it has no address here.")
    return found


class Watcher:
    """Starts the gateway, and starts it anew."""

    def __init__(
        self, listeners: list[socket.socket], options: dict[str, Any], *, debug: bool
    ) -> None:
        self._listeners = listeners
        self._options = dict(options)
        self._debug = debug
        self._raylet_pid = 0
        self._has_served = False
        self._told_to_end = False
        self._pause_s = 0.0
        self._wakeup, self._waker = os.pipe()

    def run(self) -> int:
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._waker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell_to_end)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes `_wait`
        while True:
            begun = time.monotonic()
            code = self._try_to_serve()
            if self._told_to_end or self._cluster_is_gone():
                return 0
            if code == 0 or not self._has_served:
                return code if code >= 0 else 128 - code
            lasted = time.monotonic() - begun >= LASTING_S
            pause_s, self._pause_s = (0.0 if lasted else self._pause_s), self._next_pause_s(lasted)
            say(f"The gateway ended with {code}; starting it again in {pause_s:.1f} s.")
            self._rest(pause_s)
            if self._told_to_end or self._cluster_is_gone():
                return 0

    def _next_pause_s(self, lasted: bool) -> float:
        return FIRST_PAUSE_S if lasted else min(LAST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2))

    def _try_to_serve(self) -> int:
        """Serve once. What the system refuses now, it may give in a while."""
        try:
            return self._serve_once()
        except OSError as error:
            if not self._has_served:
                raise RayJobsError(f"The gateway can't be started: {error}.") from None
            say(f"It can't be started: {error}.")
            return 1

    def _serve_once(self) -> int:
        """Start the gateway and wait for its end. Returns its exit code, as of `Popen`."""
        ready, told = os.pipe()
        with open(ready, "rb", buffering=0) as pipe:
            try:
                child = self._start(told)
            finally:
                os.close(told)
            try:
                while child.poll() is None:
                    self._wait(NODE_CHECK_S, None if pipe.closed else pipe.fileno())
                    if not pipe.closed and is_readable(pipe.fileno()):
                        self._hear(pipe.read(READY_BYTES))
                        pipe.close()
                    if self._told_to_end:
                        return end(child, END_TIMEOUT_S)
                    if self._cluster_is_gone():
                        return end(child, ORPHANED_TIMEOUT_S)
                return child.wait()
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()

    def _start(self, told: int) -> subprocess.Popen[bytes]:
        listeners = [listener.fileno() for listener in self._listeners]
        handover = Handover(os.getpid(), listeners, told, self._options)
        words = [*(["--debug"] if self._debug else []), "serve", "--handover", handover.encoded()]
        return subprocess.Popen(
            python_command(COMMAND_LINE, *words),
            pass_fds=[*listeners, told],
            # A terminal's Ctrl-C is for the watcher, which tells it once.
            start_new_session=True,
        )

    def _hear(self, told: bytes) -> None:
        """Note that connections are accepted. Nothing is told if it died before."""
        if not told:
            return
        ready = Ready.decoded(told)
        self._raylet_pid = ready.raylet or self._raylet_pid
        # Looked for once: by now "auto" may be another cluster.
        self._options["address"] = ready.gcs_address or self._options["address"]
        if not self._has_served:
            self._has_served = True
            tell(sys.stdout, f"ray-jobs gateway listening on {self._url()}")

    def _url(self) -> str:
        host = self._options["host"]
        scheme = "https" if self._options["tls_cert"] else "http"
        port = self._listeners[0].getsockname()[1]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def _cluster_is_gone(self) -> bool:
        return self._raylet_pid != 0 and not runs(self._raylet_pid)

    def _tell_to_end(self, *_: object) -> None:
        self._told_to_end = True

    def _rest(self, pause_s: float) -> None:
        deadline = time.monotonic() + pause_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._wait(min(left_s, NODE_CHECK_S), None)
            if self._told_to_end or self._cluster_is_gone():
                return

    def _wait(self, timeout_s: float, pipe: int | None) -> None:
        """Return after a while, or when there is a signal, the end of a child among them."""
        descriptors = [self._wakeup] if pipe is None else [self._wakeup, pipe]
        ready, _, _ = select.select(descriptors, [], [], timeout_s)
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def end(child: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Tell a process to end, and kill it if it doesn't. Returns its exit code."""
    child.terminate()
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def say(text: str) -> None:
    tell(sys.stderr, f"ray-jobs gateway: {text}")
