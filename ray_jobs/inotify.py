"""Waiting for a file to grow, by inotify where there is one. Standard library only.

Shipped by value to supervisors, so it imports nothing of ray_jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys

IN_MODIFY = 0x2
IN_CREATE = 0x100
IN_MOVED_TO = 0x80
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = 0o2000000
#: Where inotify is missing (not Linux) or its limits are reached.
FALLBACK_POLL_S = 0.1


class GrowthWatch:
    """Wakes its waiter when a file has been written to, or has come into being.

    Use as a context manager inside a running event loop. A wake-up may be spurious; none is lost
    between the moment of entering and `wait`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> GrowthWatch:
        self._loop = asyncio.get_running_loop()
        self._fd = self._open()
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._on_readable)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None and self._loop is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int | None:
        if not sys.platform.startswith("linux"):
            return None
        libc = ctypes.CDLL(None, use_errno=True)
        fd = int(libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC))
        if fd < 0:
            return None
        # A file that isn't there yet is awaited through its folder.
        target, mask = self._path, IN_MODIFY
        if not os.path.exists(self._path):
            target, mask = os.path.dirname(self._path), IN_CREATE | IN_MOVED_TO
        if libc.inotify_add_watch(fd, os.fsencode(target), mask) < 0:
            os.close(fd)
            return None
        if mask != IN_MODIFY and os.path.exists(self._path):
            os.close(fd)  # it came into being meanwhile
            return self._open()
        self._watches_file = mask == IN_MODIFY
        return fd

    def _on_readable(self) -> None:
        assert self._fd is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)
        if not self._watches_file and os.path.exists(self._path):
            self.__exit__()
            self.__enter__()
        self._changed.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a write. Returns False when `timeout_s` (seconds) passed without one."""
        limit = timeout_s
        if self._fd is None:
            limit = FALLBACK_POLL_S if timeout_s is None else min(timeout_s, FALLBACK_POLL_S)
        try:
            await asyncio.wait_for(self._changed.wait(), limit)
        except asyncio.TimeoutError:
            return self._fd is None
        self._changed.clear()
        return True

    def wake(self) -> None:
        """Wake the waiter, for a reason of the caller's own."""
        self._changed.set()
