"""Journal and store over a KV that is slow, fails, and does things without saying so."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import pytest

from ray_jobs import mirror as mirror_module
from ray_jobs import store as store_module
from ray_jobs.claims import KV_NAMESPACE
from ray_jobs.manager import journal as journal_module
from ray_jobs.manager import transitions
from ray_jobs.manager.journal import Journal
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import MIRROR_FIELDS, JobRecord, decode_record
from ray_jobs.store import RECORD_PREFIX, KvStore, Superseded

from .memory_kv import RECORD, MemoryKv, claimed
from .virtual import in_virtual_time

T = TypeVar("T")

JOBS = 30
TIMEOUT_S = 30
MOMENT_S = 0.02
#: How long a call takes at other moments.
WAY_S = 0.001


class FailingKv(MemoryKv):
    """It has bad moments: calls take a while then and many fail, half of them having done what they
    should.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self.failing = False

    async def _tried(self, call: Callable[[], Awaitable[T]]) -> T:
        is_bad_moment = asyncio.get_running_loop().time() % (2 * MOMENT_S) < MOMENT_S
        if not self.failing:
            return await call()
        if not is_bad_moment:
            await asyncio.sleep(self._rng.uniform(0, WAY_S))
            return await call()
        await asyncio.sleep(self._rng.choice((0, 0, 0.001, 0.005)))
        fate = self._rng.random()
        if fate < 0.15:
            raise ConnectionError("the KV is away")
        answer = await call()
        if fate < 0.3:
            raise ConnectionError("the answer was lost")
        return answer

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        put = super().put
        return await self._tried(lambda: put(namespace, key, value, overwrite))

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        get = super().get
        return await self._tried(lambda: get(namespace, key))

    async def delete(self, namespace: bytes, key: str) -> None:
        delete = super().delete
        await self._tried(lambda: delete(namespace, key))

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        exists = super().exists
        return await self._tried(lambda: exists(namespace, key))

    def recorded(self, submission_id: str) -> JobRecord | None:
        data = self.data.get((KV_NAMESPACE, RECORD_PREFIX + submission_id))
        return None if data is None else decode_record(data)


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (journal_module, mirror_module):
        for name in ("FIRST_RETRY_S", "LAST_RETRY_S", "RETRY_S", "DELAY_S"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 0.001)


def placed(record: JobRecord) -> JobRecord | None:
    return transitions.running(
        record, node_id="head", agent_address=None, on_head=True, log_base_bytes=0
    )


def failed(record: JobRecord) -> JobRecord | None:
    return transitions.failed(
        record, now_ms=9, message="reason", error_type=JobErrorType.JOB_SUPERVISOR_ACTOR_DIED
    )


async def life(journal: Journal, kv: FailingKv, number: int) -> JobStatus | None:
    """Lead a job through its states. Returns the last one, None if it was deleted."""
    name = f"job-{number}"
    record = msgspec.structs.replace(RECORD, submission_id=name, attempt=f"attempt-{number}")
    another = msgspec.structs.replace(record, attempt="another")
    claims = await asyncio.gather(journal.create(record), journal.create(another))
    assert tuple(claims) == (True, False)
    assert kv.recorded(name) == record  # before anybody hears of it
    if number % 5 == 0:
        return JobStatus.PENDING
    await journal.update(name, placed)
    found = kv.recorded(name)
    assert found is not None
    assert found.status is JobStatus.RUNNING
    ends = await asyncio.gather(*(journal.update(name, failed) for _ in range(2)))
    assert ends[0] is not None
    assert ends[1] is None  # once
    assert kv.mirror(name)["status"] == "FAILED"
    if number % 3:
        return JobStatus.FAILED
    ended = journal.get(name)
    assert ended is not None
    await journal.delete(ended)
    assert kv.recorded(name) is None
    return None


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_and_nothing_done_twice(seed: int) -> None:
    kv = FailingKv(seed)
    store = await claimed(kv)
    journal = Journal(store, 1, on_superseded=lambda: pytest.fail("nobody took over"))
    kv.failing = True
    lives = (life(journal, kv, number) for number in range(JOBS))
    states = await asyncio.wait_for(asyncio.gather(*lives), TIMEOUT_S)
    kv.failing = False
    wanted = {f"job-{number}": state for number, state in enumerate(states) if state}
    loaded = {each.submission_id: each for each in await KvStore(kv, FIELDS).load()}
    assert {name: each.status for name, each in loaded.items()} == wanted
    assert {each.submission_id: each.status for each in journal.records()} == wanted
    await kv.until(lambda: all(kv.mirror(name)["status"] == wanted[name] for name in wanted))
    # What a replica was told is what is there.
    batch = await journal.changes(0, 0, 0)
    assert {change.submission_id for change in batch.changes} == wanted.keys()
    await journal.close()


FIELDS = frozenset(MIRROR_FIELDS)


@pytest.mark.parametrize("seed", range(8))
def test_a_successor_that_claims_meanwhile_is_the_only_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whom a busy machine holds up between its look and its write writes too late.
    scenario = functools.partial(succeed, FailingKv(seed))
    in_virtual_time(monkeypatch, store_module, scenario, TIMEOUT_S, seed)


async def succeed(kv: FailingKv) -> None:
    """Have a manager that writes for ever superseded by another."""
    old = await claimed(kv)
    superseded = asyncio.Event()
    journal = Journal(old, 1, on_superseded=superseded.set)
    kv.failing = True

    async def write() -> None:
        for number in range(10_000):
            record = msgspec.structs.replace(RECORD, submission_id=f"old-{number}")
            await journal.create(record)

    writing = asyncio.ensure_future(write())
    new = KvStore(kv, FIELDS)
    while True:
        try:
            await new.claim_epoch()
            break
        except ConnectionError:
            continue
    # From here on nothing of the predecessor's is added, whatever it still tries.
    before = len(kv.data)
    with pytest.raises(Superseded):
        await writing
    assert superseded.is_set()
    assert len(kv.data) == before
    await journal.close()
