"""What a row is, and what it is given to do its work."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from benchmarks.api import Api
from benchmarks.figures import Figure
from benchmarks.probe import Probe
from benchmarks.processes import ClusterProcesses
from tests.cluster import Cluster

#: A cluster that uses less CPU than this does nothing but what it always does.
QUIET_CORES = 0.15
QUIET_LOOK_S = 0.5
QUIET_TIMEOUT_S = 30.0
#: Finished jobs that are kept in the stage RETAINING.
RETAINED_JOBS = 1_000


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for at the command line."""

    quick: bool = False
    minutes: float = 1.0  #: of the row `sustained`, for each server


@dataclasses.dataclass
class Bench:
    """One server, and all that a row needs to work with it."""

    api: Api
    cluster: Cluster
    processes: ClusterProcesses
    probe: Probe
    options: Options
    is_ours: bool
    #: Jobs in the KV that were written there by `rows.many`.
    filled: int = 0
    #: Jobs with a log of a certain size, by megabytes.
    big_logs: dict[int, str] = dataclasses.field(default_factory=dict)

    def repetitions(self, ours: int, stock: int = 0) -> int:
        """Return how often to do it: the stock server, which takes seconds, is asked less often.

        With --quick a quarter of that.
        """
        count = ours if self.is_ours else stock
        return max(2, count // 4) if self.options.quick else count

    async def quiet(self) -> None:
        """Wait until the cluster has no work left over, for at most `QUIET_TIMEOUT_S`."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        while time.monotonic() < deadline:
            if await self.cpu_cores(QUIET_LOOK_S) < QUIET_CORES:
                return

    async def cpu_cores(self, window_s: float) -> float:
        """Return the cores that the control plane uses in a window of time from now on."""
        before, began = self.processes.cpu_s(), time.perf_counter()
        await asyncio.sleep(window_s)
        return (self.processes.cpu_s() - before) / (time.perf_counter() - began)

    @contextmanager
    def unprobed(self) -> Iterator[None]:
        """Have the health check not asked meanwhile: its own CPU would be measured."""
        self.probe.stop()
        try:
            yield
        finally:
            self.probe.start()


class Stage(enum.Enum):
    """Rows of one stage share a cluster, in the order of the stages."""

    MAIN = "a cluster as a user would start it"
    QUIET = "another one, in which nothing has run yet"
    DENSE = "one with dense supervision"
    RETAINING = "one that keeps only the youngest finished jobs"
    MANY = "one whose KV is filled with jobs that have ended"

    @property
    def env(self) -> Mapping[str, str]:
        """What its `ray start` has in its environment."""
        if self is Stage.DENSE:
            return {"RAY_JOBS_SUPERVISION": "dense"}
        return {"RAY_JOBS_RETAIN_JOBS": str(RETAINED_JOBS)} if self is Stage.RETAINING else {}


Work = Callable[[Bench], Awaitable[list[Figure]]]


@dataclasses.dataclass(frozen=True)
class Row:
    """Work that can be asked for by a name."""

    key: str
    what: str
    work: Work
    stage: Stage = Stage.MAIN
    #: The stock server can do it too.
    is_stock_able: bool = True
