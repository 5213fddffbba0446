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
IN_ONESHOT = 0x80000000
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = 0o2000000
#: Where inotify is missing (not Linux) or its limits are reached.
FALLBACK_POLL_S = 0.1


class GrowthWatch:
    """Wakes its waiter when a file has been written to, or has come into being.

    Use as a context manager inside a running event loop. Look at the file, and wait when there is
    nothing new: a wake-up may be spurious, and none is lost. The file is watched only while
    somebody waits: a watch makes each write dearer, by a fourth for one line after the other.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._libc = ctypes.CDLL(None)
        self._fd: int | None = None
        self._changed = asyncio.Event()
        self._is_armed = False
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
        fd = int(self._libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC))
        return fd if fd >= 0 else None

    def _arm(self) -> bool:
        """Watch for the next event. Returns False where the system's limits are reached."""
        if self._add(self._path, IN_MODIFY):
            return True
        # A file that isn't there yet is awaited through its folder; it may come meanwhile.
        is_awaited = self._add(os.path.dirname(self._path), IN_CREATE | IN_MOVED_TO)
        return self._add(self._path, IN_MODIFY) or is_awaited

    def _add(self, path: str, mask: int) -> bool:
        return (
            int(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask | IN_ONESHOT)) >= 0
        )

    def _on_readable(self) -> None:
        assert self._fd is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)
        self._is_armed = False
        self._changed.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a write. Returns False when `timeout_s` (seconds) passed without one."""
        if self._fd is not None and not self._is_armed:
            self._is_armed = self._arm()
            if self._is_armed:
                return True  # what was written before must be looked for
        limit = timeout_s
        if not self._is_armed:
            limit = FALLBACK_POLL_S if timeout_s is None else min(timeout_s, FALLBACK_POLL_S)
        try:
            await asyncio.wait_for(self._changed.wait(), limit)
        except asyncio.TimeoutError:
            return not self._is_armed
        self._changed.clear()
        return True

    def wake(self) -> None:
        """Wake the waiter, for a reason of the caller's own."""
        self._changed.set()
