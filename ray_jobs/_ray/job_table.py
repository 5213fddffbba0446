"""The GCS's job table: every driver that connected to the cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

from ray_jobs._ray.gcs import gcs_client

BATCH_ROWS = 256


@dataclasses.dataclass(frozen=True)
class DriverRow:
    """A row of the GCS's job table: one driver that connected to the cluster."""

    job_id: str
    namespace: str
    is_dead: bool
    entrypoint: str
    start_time_ms: int
    end_time_ms: int
    metadata: dict[str, str]
    runtime_env: dict[str, Any]
    node_ip_address: str
    pid: int


def _driver_row(entry: Any) -> DriverRow:
    serialized = entry.config.runtime_env_info.serialized_runtime_env
    return DriverRow(
        job_id=entry.job_id.hex(),
        namespace=entry.config.ray_namespace,
        is_dead=bool(entry.is_dead),
        entrypoint=entry.entrypoint,
        start_time_ms=entry.start_time,
        end_time_ms=entry.end_time,
        metadata=dict(entry.config.metadata),
        runtime_env=json.loads(serialized) if serialized else {},
        node_ip_address=entry.driver_address.ip_address,
        pid=entry.driver_pid,
    )


async def driver_rows(client: Any = None) -> list[DriverRow]:
    """Return the GCS's job table. Public API is missing."""
    table = await (client or gcs_client()).async_get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=None
    )
    # In a thread: a long table isn't one step of the event loop.
    return await asyncio.to_thread(lambda: [_driver_row(entry) for entry in table.values()])


async def driver_updates(gcs_address: str) -> AsyncIterator[list[DriverRow]]:
    """Yield the rows of drivers as they come and go. The first batch is empty: subscribed.

    Public API is missing. Ends, or raises what gRPC raises, when the GCS goes away.
    """
    from ray._private.gcs_pubsub import GcsAioJobSubscriber

    subscriber = GcsAioJobSubscriber(address=gcs_address)
    # One is always on its way: it fails when the GCS dies. One that is sent afterwards waits for
    # ever, since the next GCS knows of no subscription.
    polling = asyncio.ensure_future(subscriber.poll(batch_size=BATCH_ROWS))
    try:
        await subscriber.subscribe()
        yield []
        while messages := await polling:  # none: the GCS is away
            polling = asyncio.ensure_future(subscriber.poll(batch_size=BATCH_ROWS))
            yield [_driver_row(entry) for _, entry in messages]
    finally:
        await subscriber.close()  # which ends the poll
        await asyncio.gather(polling, return_exceptions=True)
