"""No cluster: its KV is in memory, for stores in which nothing waits."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray

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


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep supervisors in this process from starting a cluster, as Ray does when asked for one."""
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    yield
    assert not ray.is_initialized()
