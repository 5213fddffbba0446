"""The weather: how long calls take, and how they fail. The test chooses it, and chance the rest."""

from __future__ import annotations

import dataclasses
import random


@dataclasses.dataclass
class Weather:
    """What calls of one kind meet."""

    rng: random.Random
    #: One way of a call, at most, in seconds.
    slowest_s: float = 0.001
    #: A call is lost on its way, with this probability; or its answer is.
    lost: float = 0.0
    lost_answer: float = 0.0
    #: What is too large for a call goes through the object store, in so many seconds at most.
    slowest_transfer_s: float = 0.0
    #: A call reaches the other side twice.
    doubled: float = 0.0
    #: Calls may have been lost at some time.
    was_lossy: bool = False

    def way_s(self) -> float:
        return self.rng.choice((0.0, self.rng.uniform(0, self.slowest_s)))

    def transfer_s(self) -> float:
        return self.rng.uniform(0, self.slowest_transfer_s)

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def set(self, **values: float) -> None:
        """Have other weather; what isn't named becomes fair."""
        self.slowest_s = values.get("slowest_s", 0.001)
        self.lost = values.get("lost", 0.0)
        self.was_lossy |= self.lost > 0
        self.lost_answer = values.get("lost_answer", 0.0)
        self.slowest_transfer_s = values.get("slowest_transfer_s", 0.0)
        self.doubled = values.get("doubled", 0.0)
