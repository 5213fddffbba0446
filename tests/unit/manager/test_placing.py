"""Placing: the real pool, with stand-ins for the supervisors."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from ray_jobs.claims import VERSION
from ray_jobs.manager import pool as pool_module
from ray_jobs.manager.calls import Supervisor
from ray_jobs.manager.environments import Environments
from ray_jobs.manager.failures import START_TIMEOUT_ENV_VAR, StartTimeout
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.leads import Lead, Services
from ray_jobs.manager.placing import Placing
from ray_jobs.manager.pool import Pool, PoolSettings
from ray_jobs.manager.seats import OwnSeat, PooledSeat
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from tests.unit.manager.test_environments import FakeAgent
from tests.unit.manager.virtual import in_virtual_time

TIMEOUT_S = 0.2


class FakeActor:
    """An actor handle. `told`: what it tells of its version."""

    class Describe:
        def __init__(self, told: dict[str, str]) -> None:
            self._told = told

        async def remote(self, *_: Any) -> dict[str, Any]:
            return {"node_id": "elsewhere", "head_token": "", "attempts": [], **self._told}

    def __init__(self, told: dict[str, str] | None = None) -> None:
        self.describe = self.Describe({"version": VERSION} if told is None else told)


class FakeSupervisors:
    """`Supervisors`: one may be found, and others are made."""

    def __init__(self) -> None:
        self.found: FakeActor | None = None
        self.made: list[FakeActor] = []
        self.ended: list[FakeActor] = []

    async def find(self, submission_id: str) -> FakeActor | None:
        return self.found

    async def create(self, record: JobRecord, log_path: str) -> FakeActor:
        self.made.append(FakeActor())
        return self.made[-1]

    async def end(self, handle: FakeActor) -> None:
        self.ended.append(handle)


class NoMaker:
    """Makes no supervisor, ever."""

    async def make(self) -> Any:
        await asyncio.Event().wait()

    async def end(self, handle: Any) -> None:
        raise AssertionError("nothing is ended")

    async def death(self, handle: Any) -> None:
        await asyncio.Event().wait()


class FakeJournal:
    epoch = 1


@pytest.fixture
def pool() -> Pool:
    return Pool(NoMaker(), PoolSettings(warm=0))


@pytest.fixture
def supervisors() -> FakeSupervisors:
    return FakeSupervisors()


@pytest.fixture
def placing(
    pool: Pool, supervisors: FakeSupervisors, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Placing:
    monkeypatch.setenv(START_TIMEOUT_ENV_VAR, str(TIMEOUT_S))
    return Placing(
        Services(
            journal=cast(Any, FakeJournal()),
            supervisors=cast(Any, supervisors),
            pool=pool,
            environments=Environments(FakeAgent(), streams_log=False),
            pins=cast(Any, None),
            logs=JobLogs(str(tmp_path)),
            node_id="head",
            agent_address=cast(Any, None),
            node_lives=cast(Any, None),
            on_end=cast(Any, None),
        )
    )


def job() -> JobRecord:
    return JobRecord(submission_id="a", entrypoint="true", status=JobStatus.PENDING)


async def test_a_job_that_no_supervisor_is_made_for_fails_in_time(placing: Placing) -> None:
    with pytest.raises(StartTimeout, match=START_TIMEOUT_ENV_VAR):
        await asyncio.wait_for(placing.place(Lead("a", recovering=False), job()), 5)


def test_waiting_for_others_to_end_is_no_trouble_at_the_start(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long queue is served one after another: its last job may wait longer than the timeout."""

    async def wait_for_turns() -> None:
        pool: Pool = request.getfixturevalue("pool")
        placing: Placing = request.getfixturevalue("placing")
        pool.join(Supervisor(FakeActor()))
        leads = [Lead("a", recovering=False) for _ in range(6)]
        placed = [asyncio.ensure_future(placing.place(lead, job())) for lead in leads]
        for lead, place in zip(leads, placed, strict=True):
            assert (await place).node_id == "head"
            assert lead.seat is not None
            await asyncio.sleep(TIMEOUT_S / 2)  # as long as the job runs
            await lead.seat.leave()

    in_virtual_time(monkeypatch, pool_module, wait_for_turns, 10 * TIMEOUT_S)


async def test_who_is_cancelled_while_waiting_takes_no_supervisor(
    placing: Placing, pool: Pool
) -> None:
    waiting = asyncio.ensure_future(placing.place(Lead("a", recovering=False), job()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    pool.join(Supervisor(FakeActor()))
    lead = Lead("b", recovering=False)
    await asyncio.wait_for(placing.place(lead, job()), 5)
    assert isinstance(lead.seat, PooledSeat)


async def test_a_supervisor_that_an_earlier_manager_made_is_used(
    placing: Placing, pool: Pool, supervisors: FakeSupervisors
) -> None:
    pool.join(Supervisor(FakeActor()))
    supervisors.found = FakeActor()
    lead = Lead("a", recovering=True)
    assert (await placing.place(lead, job())).node_id == "elsewhere"
    assert isinstance(lead.seat, OwnSeat)
    assert not supervisors.made
    assert not supervisors.ended


@pytest.mark.parametrize("told", [{"version": "0.0.9"}, {}], ids=["another", "none"])
async def test_one_of_another_version_is_replaced(
    placing: Placing, supervisors: FakeSupervisors, told: dict[str, str]
) -> None:
    """It may not understand the orders of this one. Nothing of the job runs yet."""
    supervisors.found = FakeActor(told)
    lead = Lead("a", recovering=True)
    assert (await placing.place(lead, job())).node_id == "elsewhere"
    assert supervisors.ended == [supervisors.found]
    assert len(supervisors.made) == 1
    assert isinstance(lead.seat, OwnSeat)
    await lead.seat.leave()
    assert supervisors.ended == [supervisors.found, *supervisors.made]
