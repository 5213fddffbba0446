"""Adopting: a running job is given another supervisor, whatever stands in the way for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from ray.exceptions import ActorDiedError, ActorUnschedulableError, OutOfMemoryError, RayError

from ray_jobs.kv import Superseded
from ray_jobs.manager import adopting as adopting_module
from ray_jobs.manager import leads, recovery
from ray_jobs.manager.adopting import Adopting
from ray_jobs.manager.failures import JobLost, NeverStarted
from ray_jobs.manager.leads import AdoptionPauses, Lead, Services
from ray_jobs.manager.placing import Placing
from ray_jobs.manager.seats import OwnSeat
from ray_jobs.models import JobStatus

from .memory_kv import RECORD

TIMEOUT_S = 5
RUNNING = msgspec.structs.replace(
    RECORD, status=JobStatus.RUNNING, attempt="x", driver_node_id="elsewhere"
)


class FakeActor:
    """An actor handle whose `adopt` does what it is told, on a node."""

    def __init__(self, result: dict[str, Any] | Exception, node_id: str = "elsewhere") -> None:
        self.orders: list[Any] = []
        self.adopt = self
        self.describe = SimpleNamespace(remote=self._describe)
        self._node_id = node_id
        self._result = result

    async def _describe(self, epoch: int) -> dict[str, Any]:
        return {"node_id": self._node_id}

    async def remote(self, epoch: int, order: Any) -> dict[str, Any]:
        self.orders.append(order)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class FakeCluster:
    """`Supervisors`, and a node. Adopters are made as `results` has it; the last one stays."""

    def __init__(self, *results: dict[str, Any] | Exception) -> None:
        self.results = list(results)
        self.creation_errors: list[Exception] = []
        self.find_errors: list[Exception] = []
        self.found: FakeActor | None = None
        self.made: list[FakeActor] = []
        self.ended: list[FakeActor] = []
        self.node_is_up = True

    async def find(self, submission_id: str) -> FakeActor | None:
        if self.find_errors:
            raise self.find_errors.pop(0)
        return self.found

    async def create_adopter(self, record: Any) -> FakeActor:
        if self.creation_errors:
            raise self.creation_errors.pop(0)
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        self.made.append(FakeActor(result))
        return self.made[-1]

    async def end(self, actor: FakeActor) -> None:
        self.ended.append(actor)

    def order(self, record: Any) -> dict[str, Any]:
        return {"stop_requested": record.stop_requested}

    async def node_lives(self, node_id: str) -> bool:
        assert node_id == "elsewhere"
        return self.node_is_up


class FakeJournal:
    epoch = 1
    record = RUNNING

    def get(self, submission_id: str) -> Any:
        return self.record

    async def written(self, submission_id: str) -> None:
        """What `get` returns is in the store."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads, "ADOPTION_PAUSE_S", 0.0)
    monkeypatch.setattr(recovery, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(adopting_module, "attempt_path", lambda attempt: attempt)
    monkeypatch.setattr(adopting_module, "is_claimed", lambda directory: False)


def adopting(cluster: FakeCluster, journal: FakeJournal | None = None) -> Adopting:
    services = Services(
        journal=cast(Any, journal or FakeJournal()),
        supervisors=cast(Any, cluster),
        pool=cast(Any, None),
        environments=cast(Any, None),
        pins=cast(Any, None),
        logs=cast(Any, None),
        node_id="head",
        agent_address=cast(Any, None),
        node_lives=cluster.node_lives,
        on_end=cast(Any, None),
    )
    return Adopting(services, Placing(services))


async def adopt(cluster: FakeCluster, journal: FakeJournal | None = None) -> Lead:
    lead = Lead("a", recovering=False)
    adoption = adopting(cluster, journal).adopt(lead, RUNNING, 9.0)
    await asyncio.wait_for(adoption, TIMEOUT_S)
    return lead


def until_attempt(cluster: FakeCluster, number: int, then: Callable[[], None]) -> Any:
    """Return a `create_adopter` that does something at an attempt."""
    create = cluster.create_adopter

    async def create_adopter(record: Any) -> FakeActor:
        if len(cluster.made) == number:
            then()
        return await create(record)

    return create_adopter


@pytest.mark.parametrize("death", [ActorDiedError(), OutOfMemoryError("too little memory")])
async def test_it_goes_on_as_long_as_adopters_die(death: RayError) -> None:
    cluster = FakeCluster(*[death] * 100, {"state": "running"})
    lead = await adopt(cluster)
    assert len(cluster.made) == 101
    assert isinstance(lead.seat, OwnSeat)
    assert not cluster.ended


async def test_a_stop_that_is_requested_meanwhile_comes_with_the_order() -> None:
    cluster = FakeCluster(*[ActorDiedError()] * 30, {"state": "running"})
    journal = FakeJournal()

    def request_stop() -> None:
        journal.record = msgspec.structs.replace(RUNNING, stop_requested=True)

    cluster.create_adopter = until_attempt(cluster, 25, request_stop)  # type: ignore[method-assign]
    await adopt(cluster, journal)
    assert [each.orders[0]["stop_requested"] for each in cluster.made] == [False] * 25 + [True] * 6


@pytest.mark.parametrize("error", [RayError("the GCS is away"), ValueError("name"), OSError()])
async def test_it_goes_on_when_no_adopter_can_be_made(error: Exception) -> None:
    cluster = FakeCluster({"state": "running"})
    cluster.creation_errors = [error] * 30
    lead = await adopt(cluster)
    assert len(cluster.made) == 1
    assert lead.creation is None


async def test_a_creation_that_failed_is_forgotten() -> None:
    """Who leaves the job would take it for a supervisor on its way, and leave the real one be."""
    cluster = FakeCluster({"state": "running"})

    async def fail(record: Any) -> FakeActor:
        cluster.node_is_up = False
        raise OSError

    cluster.create_adopter = fail  # type: ignore[method-assign]
    lead = Lead("a", recovering=False)
    with pytest.raises(JobLost):
        await adopting(cluster).adopt(lead, RUNNING, 9.0)
    assert lead.creation is None


async def test_one_that_fails_otherwise_is_ended() -> None:
    cluster = FakeCluster(RayError("its disk is full"), {"state": "running"})
    await adopt(cluster)
    assert cluster.ended == cluster.made[:1]


async def test_it_ends_with_the_node() -> None:
    cluster = FakeCluster(ActorDiedError())

    def end_node() -> None:
        cluster.node_is_up = False

    cluster.create_adopter = until_attempt(cluster, 30, end_node)  # type: ignore[method-assign]
    with pytest.raises(JobLost, match="node"):
        await adopt(cluster)
    assert len(cluster.made) == 31


async def test_that_ray_places_no_adopter_is_no_proof_that_the_node_is_gone() -> None:
    cluster = FakeCluster(ActorUnschedulableError("not now"), {"state": "running"})
    await adopt(cluster)
    assert len(cluster.made) == 2


async def test_what_an_adopter_knows_ends_it() -> None:
    with pytest.raises(NeverStarted):
        await adopt(FakeCluster({"state": "unknown"}))
    with pytest.raises(Superseded):
        await adopt(FakeCluster(Superseded()))


async def test_the_supervisor_of_an_earlier_manager_is_found_though_the_gcs_was_away() -> None:
    cluster = FakeCluster({"state": "running"})
    cluster.found = FakeActor({"state": "running"})
    cluster.find_errors = [ConnectionError()] * 3
    lead = Lead("a", recovering=True)
    await asyncio.wait_for(adopting(cluster).resume(lead, RUNNING), TIMEOUT_S)
    assert cluster.found.orders
    assert not cluster.made


async def test_a_supervisor_of_the_jobs_on_another_node_is_not_asked() -> None:
    """A manager that was about to be replaced has made it: it would say that nothing was begun."""
    cluster = FakeCluster({"state": "running"})
    cluster.found = FakeActor({"state": "unknown"}, node_id="a third one")
    lead = Lead("a", recovering=True)
    await asyncio.wait_for(adopting(cluster).resume(lead, RUNNING), TIMEOUT_S)
    assert cluster.found.orders == []
    assert cluster.ended == [cluster.found]
    [adopter] = cluster.made
    assert adopter.orders


def test_pauses_grow_while_supervisors_die_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leads, "ADOPTION_PAUSE_S", 0.05)
    pauses = AdoptionPauses()
    assert pauses.after(lived_s=0.3) == 0.0
    assert [pauses.after(lived_s=0.0) for _ in range(4)] == [0.05, 0.1, 0.2, 0.4]
    for _ in range(1000):
        longest_s = pauses.after(lived_s=0.0)
    assert longest_s == leads.LONGEST_ADOPTION_PAUSE_S
    assert pauses.after(lived_s=leads.LIVED_S) == 0.0
    assert pauses.after(lived_s=0.0) == 0.05
