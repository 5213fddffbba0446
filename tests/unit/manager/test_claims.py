from __future__ import annotations

import pytest

from ray_jobs.claims import EPOCH_PREFIX, KV_NAMESPACE, Claim, latest_claim
from ray_jobs.store import KvStore

from .memory_kv import MemoryKv


async def test_latest_claim_is_the_one_of_the_highest_epoch() -> None:
    kv = MemoryKv()
    assert await latest_claim(kv) is None
    await kv.put(KV_NAMESPACE, f"{EPOCH_PREFIX}9", Claim("1.0", "before").encoded())
    claim = Claim("1.0", "latest")
    assert await KvStore(kv, frozenset(), claim.encoded()).claim_epoch() == 10
    assert await latest_claim(kv) == claim


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("0.9.0", "0.10.0", True),
        ("0.10.0", "0.9.0", False),  # an older face never replaces a newer manager
        ("0.1.0", "0.1.0", False),
        ("0.1.0.dev3", "0.1.0", True),
        ("", "0.1.0", False),
    ],
)
def test_who_gives_way(theirs: str, ours: str, expected: bool) -> None:
    assert Claim.decoded(Claim(theirs, "a").encoded()) == Claim(theirs, "a")
    assert Claim(theirs, "a").gives_way_to(ours) is expected
