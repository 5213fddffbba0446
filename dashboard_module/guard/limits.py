"""Limits against floods: requests at once, and submissions a second of each client. Pure.

All costs are constant: they are on the path of every request.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable

from ray_jobs.errors import TooManyRequests

#: Clients that are remembered; the one that was heard of least recently is forgotten first.
MAX_CLIENTS = 10_000
#: A client may use up so many seconds of its rate at once.
BURST_S = 5.0
RETRY_AFTER_S = 1
#: Once in eleven days. When there is room again by a lower rate may be no number.
LEAST_PER_S = 1e-6


class Gauge:
    """How many there are of something, and at most may be.

    Args:
        most: 0 is no limit.
        what: For the error: "requests at once".
    """

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self.count = 0

    def take(self, others: int = 0) -> None:
        """Count one more, until `give_back`. Raises `TooManyRequests`.

        Args:
            others: That are there besides those that are counted.
        """
        if self._most and self.count + others >= self._most:
            raise TooManyRequests(
                f"The server is at its limit of {self._most:,} {self._what}; try again later.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.count += 1

    def give_back(self) -> None:
        self.count -= 1


class SharedGauge(Gauge):
    """A gauge of which one client may have a share, so that it can't keep all others out.

    Args:
        most: 0 is no limit, for a client neither.
        share: The part of it for one client: 0.75. 0 is no limit.
        what: For the error: "requests at once".
    """

    def __init__(self, most: int, share: float, what: str) -> None:
        super().__init__(most, what)
        self._share = share_of(most, share)
        self._counts: dict[str, int] = {}

    def take_for(self, client: str) -> None:
        """Count one more, until `give_back_for`. Raises `TooManyRequests`."""
        count = self._counts.get(client, 0)
        if self._share and count >= self._share:
            raise TooManyRequests(
                f"This client is at its limit of {self._share:,} {self._what}; try again later.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.take()
        self._counts[client] = count + 1

    def give_back_for(self, client: str) -> None:
        self.give_back()
        left = self._counts.pop(client) - 1
        if left:
            self._counts[client] = left


def share_of(most: int, share: float) -> int:
    """Return how many of `most` are the share of one client; 0 for no limit of its own."""
    return max(1, int(most * share)) if most and 0 < share < 1 else 0


class Rate:
    """How often each client may do something: a token bucket for each.

    Args:
        per_second: 0 is no limit; at least `LEAST_PER_S` is taken.
        what: For the error: "submissions".
    """

    def __init__(
        self, per_second: float, what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second and max(per_second, LEAST_PER_S)
        self._most = max(1.0, per_second * BURST_S)
        self._what = what
        self._clock = clock
        #: By client: what it has left, and since when.
        self._left: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def take(self, client: str) -> None:
        """Count once. Raises `TooManyRequests` with when there will be room again."""
        if not self._per_second:
            return
        now = self._clock()
        left, since = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - since) * self._per_second)
        is_over = left < 1.0
        self._left[client] = (left if is_over else left - 1.0, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        if is_over:
            raise TooManyRequests(
                f"Over the limit of {self._per_second:g} {self._what} a second for one client.",
                retry_after_s=math.ceil((1.0 - left) / self._per_second),
            )
