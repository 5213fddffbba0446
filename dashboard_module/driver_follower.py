"""Keeping the driver table current: a full list first, then Ray's own notices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ray_jobs.timeouts import timeout

from .drivers import DriverTable
from .errors import persistently
from .ports import DriverPort

#: The first read waits so long for the list of drivers; it goes on without it then.
FIRST_LIST_PATIENCE_S = 2.0
#: A list that was asked for because an id is unknown is good for so long.
RELOAD_INTERVAL_S = 1.0
#: Drivers taken over in one step of the event loop: about 2 ms.
SLICE_DRIVERS = 500


class DriverFollower:
    """Owns the driver table. `on_change` is told the submissions that have another last driver."""

    def __init__(self, port: DriverPort, on_change: Callable[[set[str]], None]) -> None:
        self.table = DriverTable()
        self._port = port
        self._on_change = on_change
        self._loaded = asyncio.Event()
        self._changed = asyncio.Event()
        self._patience_s = FIRST_LIST_PATIENCE_S
        self._reload_after = 0.0
        self._reloading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def before_read(self) -> None:
        """Return once the table may be read. The first call starts to follow."""
        if self._task is None:
            self._task = asyncio.ensure_future(persistently("Following the drivers", self._follow))
        if not self._loaded.is_set() and self._patience_s:
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(self._patience_s):
                    await self._loaded.wait()
            self._patience_s = 0.0  # jobs are served without drivers rather than late each time

    async def reload(self) -> None:
        """Read the whole list, since a notice may be late. No-op soon after the last time.

        Raises what the port raises.
        """
        loop = asyncio.get_running_loop()
        async with self._reloading:
            if loop.time() >= self._reload_after:
                await self._load()
                self._reload_after = loop.time() + RELOAD_INTERVAL_S

    def changed(self) -> asyncio.Event:
        """Return an event that is set with the next change of any driver."""
        return self._changed

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> bool:
        if not self._loaded.is_set():
            await self._load()
        is_first = True
        async for entries in self._port.updates():
            if is_first:
                # What changed between the first list and the subscription.
                await self._load()
                is_first = False
            self._take(self.table.update(entries))
        # A stream that ends is as one that fails: subscribe anew, though not in a tight loop.
        await asyncio.sleep(RELOAD_INTERVAL_S)
        return True

    async def _load(self) -> None:
        # Drivers that come while the list is on its way aren't in it: they are none to forget.
        known = self.table.ids()
        entries = await self._port.load()
        for start in range(0, len(entries), SLICE_DRIVERS):
            self._take(self.table.update(entries[start : start + SLICE_DRIVERS]))
            await asyncio.sleep(0)
        self._take(self.table.forget(known - {entry.job_id for entry in entries}))
        self._loaded.set()

    def _take(self, submission_ids: set[str]) -> None:
        if submission_ids:
            self._on_change(submission_ids)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
