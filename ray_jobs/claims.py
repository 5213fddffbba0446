"""Claims: which manager has claimed an epoch, and of which version of ray-jobs it is.

A face that finds the manager of an earlier version replaces it. Who has claimed the latest epoch
stands in the KV, so nobody has to be asked who may just be restarting.
"""

from __future__ import annotations

import importlib.metadata
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from ray_jobs.kv import KeyValueStore

KV_NAMESPACE = b"ray_jobs"
EPOCH_PREFIX = "epoch:"
#: Of the code that this process runs. Read at once: another may be installed under it.
VERSION = importlib.metadata.version("ray-jobs")


class Claim(NamedTuple):
    """Who has claimed an epoch."""

    version: str
    actor_id: str

    def encoded(self) -> bytes:
        return f"{self.version} {self.actor_id}".encode()

    @classmethod
    def decoded(cls, value: bytes) -> Claim:
        version, _, actor_id = value.decode(errors="replace").partition(" ")
        return cls(version, actor_id)

    def gives_way_to(self, version: str) -> bool:
        """Return whether it is of an earlier version. What is none gives way to nobody."""
        try:
            return Version(self.version) < Version(version)
        except InvalidVersion:
            return False


async def latest_claim(kv: KeyValueStore) -> Claim | None:
    """Return who has claimed the latest epoch, or None where there never was a manager."""
    keys = await kv.keys(KV_NAMESPACE, EPOCH_PREFIX)
    if not keys:
        return None
    latest = max(keys, key=lambda key: int(key.removeprefix(EPOCH_PREFIX)))
    return Claim.decoded(await kv.get(KV_NAMESPACE, latest) or b"")
