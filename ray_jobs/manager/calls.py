"""Calling actors that may be unreachable for a while, or be gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import ActorUnavailableError

UNAVAILABLE_RETRY_S = 0.2


async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """Await an actor call, and repeat it while the actor is unreachable but not dead.

    Only for calls that may run twice.
    """
    while True:
        try:
            return await call()
        except ActorUnavailableError:
            # There is no event for an actor that becomes reachable again.
            await asyncio.sleep(UNAVAILABLE_RETRY_S)


def brief(error: BaseException) -> str:
    """Return what went wrong without the traceback that Ray puts around it."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}"
