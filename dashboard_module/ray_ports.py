"""What the face needs of the cluster, by way of Ray: the ports of `ports.py` but the manager's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import grpc
from ray.exceptions import RayError

from ray_jobs import _ray
from ray_jobs.errors import ServerNotReady
from ray_jobs.models import GCS_MAX_PACKAGE_BYTES
from ray_jobs.records import JobRecord
from ray_jobs.store import KvStore
from ray_jobs.validation import SUBMISSION_ID_METADATA_KEY

from .drivers import DriverEntry
from .package_check import check_package
from .package_writer import write_package

logger = logging.getLogger(__name__)

#: For calls of Ray's that block: pins and small packages.
GCS_THREADS = 4


@contextlib.contextmanager
def cluster_trouble() -> Iterator[None]:
    """Turn what Ray and gRPC raise when the cluster can't be reached into `ServerNotReady`."""
    try:
        yield
    except (RayError, grpc.RpcError, OSError, RuntimeError) as error:
        logger.warning("The cluster can't be reached: %s", error)
        raise ServerNotReady("The cluster's GCS can't be reached now; try again.") from error


class RayStore:
    """`StorePort`: the records straight from the KV, for a cluster without a manager."""

    def __init__(self, kv: _ray.Kv) -> None:
        self._store = KvStore(kv, _ray.mirror_fields())

    async def load(self) -> list[JobRecord]:
        with cluster_trouble():
            return await self._store.load()


class RayDrivers:
    """`DriverPort`: the GCS's job table."""

    def __init__(self, gcs_client: Any, gcs_address: str) -> None:
        self._gcs_client = gcs_client
        self._gcs_address = gcs_address

    async def load(self) -> list[DriverEntry]:
        with cluster_trouble():
            rows = await _ray.driver_rows(self._gcs_client)
        return await asyncio.to_thread(lambda: [_entry(row) for row in rows])

    async def updates(self) -> AsyncIterator[list[DriverEntry]]:
        with cluster_trouble():
            async for rows in _ray.driver_updates(self._gcs_address):
                yield [_entry(row) for row in rows]


class RayPackages:
    """`PackagePort`: packages in the GCS, where Ray's runtime environments look for them."""

    max_bytes = GCS_MAX_PACKAGE_BYTES

    def __init__(self, kv: _ray.Kv, gcs_address: str) -> None:
        self._kv = kv
        self._gcs_address = gcs_address
        # Their own: while the GCS is away such calls last, and nothing else may wait for them.
        self._threads = ThreadPoolExecutor(GCS_THREADS, thread_name_prefix="ray-jobs-packages")

    async def exists(self, uri: str) -> bool:
        with cluster_trouble():
            return await self._kv.exists(None, uri)

    async def pin(self, uri: str) -> None:
        with cluster_trouble():
            await self._in_thread(self._kv.pin_package, uri)

    async def put(self, uri: str, file: IO[bytes], *, by_process: bool) -> None:
        with cluster_trouble():
            if by_process:
                await write_package(self._gcs_address, uri, file)
            else:
                await self._in_thread(self._put_small, uri, file)

    async def _in_thread(self, call: Callable[..., None], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _put_small(self, uri: str, file: IO[bytes]) -> None:
        check_package(uri, file)
        file.seek(0)
        self._kv.put_package(uri, file.read())


def _entry(row: _ray.DriverRow) -> DriverEntry:
    return DriverEntry(
        job_id=row.job_id,
        submission_id=row.metadata.get(SUBMISSION_ID_METADATA_KEY) or None,
        namespace=row.namespace,
        is_dead=row.is_dead,
        entrypoint=row.entrypoint,
        start_time=row.start_time_ms,
        end_time=row.end_time_ms,
        metadata=row.metadata,
        runtime_env=row.runtime_env,
        node_ip_address=row.node_ip_address,
        pid=str(row.pid),
    )
