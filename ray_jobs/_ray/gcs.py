"""The GCS: the cluster's internal KV, and packages in it."""

from __future__ import annotations

import os
from typing import Any

#: Seconds for which a package without a job that uses it is kept; Ray's variable for it.
_PIN_SECONDS_ENV_VAR = "RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S"
_PIN_SECONDS_DEFAULT = 600


def gcs_client() -> Any:
    # Public API is missing: there is no async client of the internal KV.
    from ray._private.worker import global_worker

    return global_worker.gcs_client


class Kv:
    """The cluster's internal KV store, async. Public API is missing.

    No call has a timeout: while the GCS restarts they wait. Other failures raise Ray's `RpcError`.
    """

    def __init__(self, client: Any = None) -> None:
        self._client = client or gcs_client()

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Write. Returns whether the key is new (put-if-absent with `overwrite=False`)."""
        added = await self._client.async_internal_kv_put(
            key.encode(), value, overwrite, namespace=namespace, timeout=None
        )
        return bool(added == 1)

    async def get(self, namespace: bytes | None, key: str) -> bytes | None:
        value: bytes | None = await self._client.async_internal_kv_get(
            key.encode(), namespace=namespace, timeout=None
        )
        return value

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        found = await self._client.async_internal_kv_multi_get(
            [key.encode() for key in keys], namespace=namespace, timeout=None
        )
        return {key.decode(): value for key, value in found.items()}

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        found = await self._client.async_internal_kv_keys(
            prefix.encode(), namespace=namespace, timeout=None
        )
        return [key.decode() for key in found]

    async def delete(self, namespace: bytes, key: str) -> None:
        await self._client.async_internal_kv_del(
            key.encode(), False, namespace=namespace, timeout=None
        )

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        return bool(
            await self._client.async_internal_kv_exists(
                key.encode(), namespace=namespace, timeout=None
            )
        )

    def put_package(self, uri: str, data: bytes) -> None:
        """Store a package where Ray's runtime environments look for it. Blocking.

        Holds the GIL for some 0.6 ms a MiB; the async call holds the event loop three times longer.
        """
        self._client.internal_kv_put(uri.encode(), data, True, namespace=None, timeout=None)

    def pin_package(self, uri: str, seconds: int | None = None) -> None:
        """Keep a package for a while though nothing of Ray's uses it. Blocking.

        For as long as Ray keeps one that was uploaded, unless `seconds` are given.
        """
        if seconds is None:
            seconds = int(os.environ.get(_PIN_SECONDS_ENV_VAR, _PIN_SECONDS_DEFAULT))
        if seconds > 0:
            self._client.pin_runtime_env_uri(uri, seconds)


def put_package_from_outside(gcs_address: str, uri: str, data: bytes) -> None:
    """Store a package, in a process that isn't connected to the cluster. Blocking.

    Public API is missing.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    GcsClient(address=gcs_address).internal_kv_put(
        uri.encode(), data, True, namespace=None, timeout=None
    )
