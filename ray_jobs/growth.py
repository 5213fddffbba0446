"""Waiting for logs to grow: one inotify instance for all that a process waits for.

An instance for each would meet the system's limit of 128, and cost a file descriptor and a poll
each. Standard library only: shipped by value to supervisors.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Iterator

IN_MODIFY = 0x2
IN_CREATE = 0x100
IN_MOVED_TO = 0x80
IN_ONESHOT = 0x80000000
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = 0o2000000
_IN_Q_OVERFLOW = 0x4000
#: Not a `struct.Struct`: those can't be shipped to supervisors.
_EVENT_FORMAT = "iIII"
_EVENT_BYTES = struct.calcsize(_EVENT_FORMAT)
_READ_BYTES = 64 * 1024
#: Where inotify is missing (not Linux) or its limits are reached: this many seconds for each
#: hundred who wait.
FALLBACK_POLL_S = 0.1
_POLLERS_PER_PAUSE = 100


class _Path:
    """A file that somebody waits for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.waiters: set[GrowthWaiter] = set()
        #: Of the watch that is set, if one is: its events come under this number.
        self.descriptor: int | None = None
        #: Counts the watches that were set. Who looked before the last must look again.
        self.generation = 0

    def wake(self) -> None:
        for waiter in self.waiters:
            waiter.wake()


class GrowthWaiter:
    """Wakes its owner when a file has been written to, or has come into being.

    Look at the file, and wait when there is nothing new: a wake-up may be spurious, and none is
    lost. A file is watched only while somebody waits: a watch makes each write dearer.
    """

    def __init__(self, hub: Growth, path: _Path) -> None:
        self._hub = hub
        self._path = path
        self._changed = asyncio.Event()
        self._generation = 0

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a write. Returns False when `timeout_s` (seconds) passed without one."""
        is_watched = self._hub.arm(self._path)
        if is_watched and self._generation != self._path.generation:
            self._generation = self._path.generation
            return True  # what was written before must be looked for
        limit_s = timeout_s if is_watched else min(timeout_s, self._hub.poll_s())
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((changed,), timeout=limit_s)
        finally:
            changed.cancel()
        if not self._changed.is_set():
            return not is_watched
        self._changed.clear()
        return True

    def wake(self) -> None:
        """Wake the owner, for a reason of the caller's own too."""
        self._changed.set()


class Growth:
    """What all in one process wait with. Needs a running event loop from the first wait on."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._paths: dict[str, _Path] = {}
        self._by_descriptor: dict[int, _Path] = {}
        self._waiters = 0
        #: Folders in which files are awaited that aren't there yet, by the watches' numbers.
        self._folders: dict[int, str] = {}

    @contextlib.contextmanager
    def waiter(self, path: str) -> Iterator[GrowthWaiter]:
        """Give a waiter for a file, which need not be there yet."""
        entry = self._paths.setdefault(path, _Path(path))
        waiter = GrowthWaiter(self, entry)
        entry.waiters.add(waiter)
        self._waiters += 1
        try:
            yield waiter
        finally:
            self._waiters -= 1
            entry.waiters.discard(waiter)
            if not entry.waiters:
                self._forget(entry)

    def close(self) -> None:
        """Watch nothing any more. No-op the second time."""
        if self._fd is not None and self._loop is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        self._by_descriptor.clear()
        self._folders.clear()

    def poll_s(self) -> float:
        """Return how long somebody waits whose file can't be watched, in seconds."""
        return FALLBACK_POLL_S * (1 + self._waiters // _POLLERS_PER_PAUSE)

    def arm(self, entry: _Path) -> bool:
        """Watch a file for its next event. Returns False where that can't be done."""
        if entry.descriptor is not None:
            return True
        if self._fd is None and not self._open():
            return False
        descriptor = self._add(entry.path, IN_MODIFY | IN_ONESHOT)
        if descriptor is None:
            # A file that isn't there yet is awaited through its folder; it may come meanwhile.
            folder = os.path.dirname(entry.path)
            of_folder = self._add(folder, IN_CREATE | IN_MOVED_TO)
            if of_folder is not None:
                self._folders[of_folder] = folder
            descriptor = self._add(entry.path, IN_MODIFY | IN_ONESHOT)
            if descriptor is None:
                if of_folder is not None and entry.generation == 0:
                    entry.generation = 1
                return of_folder is not None
        other = self._by_descriptor.get(descriptor)
        if other is not None and other is not entry:  # two names of one file
            other.descriptor = None
            other.wake()
        entry.descriptor = descriptor
        entry.generation += 1
        self._by_descriptor[descriptor] = entry
        return True

    def _open(self) -> bool:
        if not sys.platform.startswith("linux"):
            return False
        fd = int(self._libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC))
        if fd < 0:
            return False
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._on_readable)
        return True

    def _add(self, path: str, mask: int) -> int | None:
        descriptor = int(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask))
        return descriptor if descriptor >= 0 else None

    def _remove(self, descriptor: int) -> None:
        if self._fd is not None:
            self._libc.inotify_rm_watch(self._fd, descriptor)

    def _forget(self, entry: _Path) -> None:
        self._paths.pop(entry.path, None)
        if entry.descriptor is not None:
            self._by_descriptor.pop(entry.descriptor, None)
            self._remove(entry.descriptor)
            entry.descriptor = None
        if not self._paths:
            for descriptor in self._folders:
                self._remove(descriptor)
            self._folders.clear()

    def _on_readable(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            descriptor, mask, _, length = struct.unpack_from(_EVENT_FORMAT, data, offset)
            begin = offset + _EVENT_BYTES
            name = os.fsdecode(data[begin : begin + length].rstrip(b"\0"))
            offset = begin + length
            self._on_event(descriptor, mask, name)

    def _on_event(self, descriptor: int, mask: int, name: str) -> None:
        if mask & _IN_Q_OVERFLOW:
            for entry in self._paths.values():
                entry.wake()
            return
        if descriptor in self._folders:
            created = self._paths.get(os.path.join(self._folders[descriptor], name))
            if created is not None:
                created.wake()
            return
        # The kernel has dropped the watch with its first event.
        changed = self._by_descriptor.pop(descriptor, None)
        if changed is not None:
            changed.descriptor = None
            changed.wake()
