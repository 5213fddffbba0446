"""The cluster's internal KV store, as records and their mirror need it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Superseded(RuntimeError):
    """Another manager has claimed a later epoch: this one may write nothing more."""


class KeyValueStore(Protocol):
    """The cluster's internal KV, as `_ray.Kv` offers it."""

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Write. Returns whether the key is new."""

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        """Return a value, or None."""

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        """Return the values of those keys that exist."""

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix."""

    async def delete(self, namespace: bytes, key: str) -> None:
        """Remove a key. No-op if there is none."""

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        """Return whether there is a key."""


async def put_if_absent(kv: KeyValueStore, namespace: bytes, key: str, value: bytes) -> bool:
    """Claim a key. Returns whether it is ours; a claim whose answer was lost counts too."""
    if await kv.put(namespace, key, value, overwrite=False):
        return True
    return await kv.get(namespace, key) == value


async def together(*calls: Awaitable[T]) -> list[T]:
    """Make calls at once, and return once each has its answer. Raises the first failure.

    Not before the others have ended: a write on its way could come after the next one.
    """
    answers: list[T] = []
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers
