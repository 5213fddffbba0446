"""Calling supervisors, which may be unreachable for a while, or be gone."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RpcError,
)

from ray_jobs.channel import CallFailed, Channel
from ray_jobs.kv import Superseded
from ray_jobs.scrubbing import scrubbed
from ray_jobs.supervisor.actor import StaleEpochError
from ray_jobs.timeouts import timeout

logger = logging.getLogger(__name__)

STALE_EPOCH_ERROR = StaleEpochError.__name__

#: What Ray raises of a supervisor that has died; the second if it was killed because its node runs
#: out of memory.
DIED = (ActorDiedError, OutOfMemoryError)
#: And of one that is gone, or was never there.
GONE = (*DIED, ActorUnschedulableError)
#: What it raises of calls that would be answered later: the actor is unreachable, the GCS away, or
#: arguments or answer didn't come through the object store.
PASSING = (
    ActorUnavailableError,
    GetTimeoutError,
    RpcError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
)

UNAVAILABLE_RETRY_S = 0.2
#: How long a last call to a supervisor may take: its answer changes nothing any more.
FAREWELL_S = 10.0


class Supervisor:
    """A supervisor actor, and the channel to it where there is one."""

    def __init__(self, actor: Any, channel: Channel | None = None) -> None:
        self.actor = actor
        self._channel = channel

    async def call(self, method: str, *arguments: Any) -> Any:
        """Return the answer of a call that may run twice.

        Raises `Superseded` if the supervisor obeys another manager, and RayError.
        """
        if self._channel is not None and self._channel.is_open:
            try:
                return await self._channel.call(method, *arguments)
            except (ConnectionError, CallFailed) as error:
                # What is wrong, the actor's answer or Ray's will tell.
                logger.info("%s of a supervisor is called again, as an actor's: %s", method, error)
        try:
            return await getattr(self.actor, method).remote(*arguments)
        except RayTaskError as error:
            # The supervisor's class is shipped by value: its exceptions are known by name alone.
            if type(error.cause).__name__ == STALE_EPOCH_ERROR:
                raise Superseded(str(error.cause)) from None
            raise

    def hang_up(self) -> None:
        """Close the channel: this supervisor isn't needed any more."""
        if self._channel is not None:
            self._channel.abort()


async def patiently(
    call: Callable[[], Awaitable[Any]], passing: tuple[type[RayError], ...] = PASSING
) -> Any:
    """Await a call of an actor, or of the GCS, and repeat it while it fails by what will pass.

    Only for calls that may run twice.
    """
    while True:
        try:
            return await call()
        except passing:
            # There is no event for what becomes reachable again.
            await asyncio.sleep(UNAVAILABLE_RETRY_S)


async def in_thread(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call Ray, which blocks, in a thread: as `patiently` while the GCS is away."""
    return await patiently(functools.partial(asyncio.to_thread, call, *arguments, **options))


async def farewell(call: Any) -> bool:
    """Await a last call to a supervisor, for a while: it may be gone already.

    Returns whether it was answered.
    """
    try:
        async with timeout(FAREWELL_S):
            await call
    except (RayError, asyncio.TimeoutError) as error:
        logger.info("A supervisor didn't answer the last call: %s", brief(error))
        return False
    return True


def brief(error: BaseException) -> str:
    """Return what went wrong without the traceback that Ray puts around it."""
    cause = getattr(error, "cause", None) or error
    return scrubbed(f"{type(cause).__name__}: {cause}")
