"""Long work on the event loop, in steps: in between others have their turn."""

from __future__ import annotations

import asyncio
import time

#: How long a step may take before it ends with the piece of work that it is at, in seconds.
STEP_S = 0.005


class Step:
    """A step of the event loop, which begins now."""

    def __init__(self) -> None:
        self._end_s = time.monotonic() + STEP_S

    def is_over(self) -> bool:
        """Return whether it has taken as long as it may."""
        return time.monotonic() >= self._end_s

    async def next(self) -> None:
        """Let others have their turn, and begin the next step."""
        await asyncio.sleep(0)
        self._end_s = time.monotonic() + STEP_S
