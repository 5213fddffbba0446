"""How long and how often a server is asked again that doesn't answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ray_jobs import errors

T = TypeVar("T")

logger = logging.getLogger("ray_jobs")

#: What passes by itself: a restarting server, a full queue.
PASSING = (errors.ServerUnreachable, errors.ServerNotReady, errors.TooManyRequests)


@dataclass(frozen=True)
class RetryPolicy:
    """When to give up, and how long to wait between attempts; all in seconds."""

    window_s: float = 60.0  #: The longest continuous outage that is survived.
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0


class Outage:
    """The outage of a server, if there is one: from the first failure to the next success."""

    def __init__(self, policy: RetryPolicy, deadline: float | None = None) -> None:
        """Args:
        deadline: Of `time.monotonic()`: outages are survived until then, instead of for the
            policy's window. The caller says what happens after it.
        """
        self._policy = policy
        self._deadline = deadline
        self.over()

    def over(self) -> None:
        """Note that the server answered."""
        self._since: float | None = None
        self._delay = self._policy.first_delay_s

    async def survive(self, error: errors.RayJobsError) -> None:
        """Wait before the next attempt.

        Raises:
            RayJobsError: the given one, when another attempt is in vain.
        """
        from ray_jobs.client.connection_errors import is_tls_failure

        now = time.monotonic()
        if self._since is None:
            self._since = now
            logger.info("%s Trying again.", error)
        limit = self._since + self._policy.window_s if self._deadline is None else self._deadline
        if not isinstance(error, PASSING) or is_tls_failure(error) or now >= limit:
            raise error
        delay = self._delay
        if isinstance(error, errors.ServerNotReady | errors.TooManyRequests):
            delay = max(delay, float(error.retry_after_s))
        self._delay = min(self._delay * 2, self._policy.longest_delay_s)
        await asyncio.sleep(min(delay, limit - now))


async def past_limits(ask: Callable[[], Awaitable[T]], policy: RetryPolicy) -> T:
    """Ask, and again while the server is over a limit: it has done nothing then.

    Raises:
        RayJobsError: what `ask` raises; `TooManyRequests` when the policy's window is over.
    """
    return await _past(errors.TooManyRequests, ask, policy)


async def past_outages(ask: Callable[[], Awaitable[T]], policy: RetryPolicy) -> T:
    """Ask what may be asked twice, and again while the server doesn't answer, or can't.

    Raises:
        RayJobsError: what `ask` raises; one of `PASSING` when the policy's window is over.
    """
    return await _past(PASSING, ask, policy)


async def _past(
    passing: type[errors.RayJobsError] | tuple[type[errors.RayJobsError], ...],
    ask: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
) -> T:
    outage = Outage(policy)
    while True:
        try:
            return await ask()
        except passing as error:
            await outage.survive(error)
