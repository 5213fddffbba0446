"""The cluster's KV in memory, for stores in which nothing waits."""

from __future__ import annotations

import pytest

from ray_jobs import mirror
from ray_jobs import store as store_module

from .memory_kv import MemoryKv


@pytest.fixture
async def kv(monkeypatch: pytest.MonkeyPatch) -> MemoryKv:
    # Each write looks whether it may; retries come at once.
    monkeypatch.setattr(store_module, "FENCE_S", 0.0)
    monkeypatch.setattr(store_module, "SETTLING_S", 0.0)
    monkeypatch.setattr(mirror, "DELAY_S", 0.0)
    monkeypatch.setattr(mirror, "RETRY_S", 0.0)
    monkeypatch.setattr(mirror, "REPAIR_PAUSE_S", 0.0)
    return MemoryKv()
