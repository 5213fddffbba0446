"""Slots for which requests wait: neither refused at once, nor all served at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from ray_jobs.errors import ServerNotReady
from ray_jobs.timeouts import timeout

#: How long a request waits for others, in seconds: of its own client, and then of all.
TURN_TIMEOUT_S = 60.0
RETRY_AFTER_S = 10


@dataclasses.dataclass
class _Share:
    slots: asyncio.Semaphore
    requests: int = 0  #: That have a slot of it, or wait for one.


class Turns:
    """So many at once, of which one client may have a share.

    Args:
        most: Slots.
        share: Of one client; 0 for all of them.
        what: For the error: "packages are being uploaded".
    """

    def __init__(self, most: int, share: int, what: str) -> None:
        self._slots = asyncio.Semaphore(most)
        self._share = share or most
        self._what = what
        self._shares: dict[str, _Share] = {}

    @contextlib.asynccontextmanager
    async def hold(self, client: str) -> AsyncIterator[None]:
        """Hold a slot. Raises `ServerNotReady` when none gets free in time."""
        mine = self._shares.setdefault(client, _Share(asyncio.Semaphore(self._share)))
        mine.requests += 1
        try:
            async with self._slot_of(mine.slots), self._slot_of(self._slots):
                yield
        finally:
            mine.requests -= 1
            if not mine.requests:
                del self._shares[client]

    @contextlib.asynccontextmanager
    async def _slot_of(self, slots: asyncio.Semaphore) -> AsyncIterator[None]:
        try:
            async with timeout(TURN_TIMEOUT_S):
                await slots.acquire()
        except asyncio.TimeoutError:
            raise ServerNotReady(
                f"Too many {self._what}; try again.", retry_after_s=RETRY_AFTER_S
            ) from None
        try:
            yield
        finally:
            slots.release()
