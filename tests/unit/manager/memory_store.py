"""A `JobStore` in memory, which fails and delays on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray_jobs.records import JobRecord
from ray_jobs.store import Superseded


class MemoryStore:
    def __init__(self) -> None:
        self.records: dict[str, JobRecord] = {}
        self.epoch = 0
        self.claimed = 0
        #: So many writes fail, after so many that don't.
        self.failures = 0
        self.successes = 0
        self.open = asyncio.Event()
        self.open.set()
        #: Calls that wait for it to be open.
        self.waiting = 0
        self.writes: list[tuple[list[str], list[str]]] = []

    async def claim_epoch(self) -> int:
        self.claimed += 1
        self.epoch = self.claimed
        return self.epoch

    async def load(self) -> list[JobRecord]:
        return list(self.records.values())

    async def create(self, record: JobRecord) -> bool:
        await self._pass()
        if record.submission_id in self.records:
            return False
        self.records[record.submission_id] = record
        return True

    async def write(self, records: Sequence[JobRecord], deleted: Sequence[str]) -> None:
        await self._pass()
        self.writes.append(([each.submission_id for each in records], list(deleted)))
        for record in records:
            self.records[record.submission_id] = record
        for submission_id in deleted:
            self.records.pop(submission_id, None)

    async def check_epoch(self) -> None:
        if self.claimed > self.epoch:
            raise Superseded

    async def _pass(self) -> None:
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        if self.claimed > self.epoch:
            raise Superseded
        if self.successes:
            self.successes -= 1
        elif self.failures:
            self.failures -= 1
            raise ConnectionError("the KV is away")
