"""Logs of jobs of Ray's own server, by way of Ray's dashboard: its log route.

Not through the agents' job routes: one that is asked there begins to supervise the jobs of the
whole cluster, ours too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import aiohttp

from ray_jobs import _ray
from ray_jobs.log_files import log_name
from ray_jobs.records import JobRecord
from ray_jobs.scrubbing import scrubbed

from .foreign_logs import LogUnavailable
from .log_reader import MAX_FRAME_BYTES
from .ray_ports import cluster_trouble

LOG_ROUTE = "/api/v0/logs/"
CONNECT_TIMEOUT_S = 10.0
#: How long a node is given to send a whole log; Ray's own limit is 30 s.
READ_TIMEOUT_S = 3600
#: How often the node looks for what was added to a log that is followed, in seconds.
FOLLOW_INTERVAL_S = 0.25
MAX_REASON_CHARS = 500


class RayLogs:
    """`LogPort` by way of Ray's dashboard."""

    def __init__(self, kv: _ray.Kv) -> None:
        self._kv = kv

    async def is_elsewhere(self, record: JobRecord) -> bool:
        if not record.foreign or record.driver_node_id is None:
            return False
        with cluster_trouble():
            return record.driver_node_id != await _ray.head_node_id(self._kv)

    async def read(self, record: JobRecord, *, follow: bool) -> AsyncGenerator[bytes, None]:
        query = {
            "node_id": record.driver_node_id or "",
            "filename": log_name(record.submission_id),
            "lines": "-1",
            "timeout": str(READ_TIMEOUT_S),
        }
        if follow:
            query["interval"] = str(FOLLOW_INTERVAL_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        try:
            with cluster_trouble():
                url = await _ray.dashboard_url(self._kv)
            if url is None:
                raise unavailable(record, "Ray's dashboard doesn't run")
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=_ray.auth_headers()) as session,
                session.get(
                    f"{url}{LOG_ROUTE}{'stream' if follow else 'file'}", params=query
                ) as answer,
            ):
                if answer.status != 200:
                    reason = scrubbed(await answer.text())[:MAX_REASON_CHARS]
                    raise unavailable(record, reason)
                async for chunk in answer.content.iter_chunked(MAX_FRAME_BYTES):
                    yield chunk
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise unavailable(record, str(error) or type(error).__name__) from None


def unavailable(record: JobRecord, reason: str) -> LogUnavailable:
    return LogUnavailable(
        f"Job {record.submission_id} ran under Ray's own job server on node"
        f" {record.driver_node_id}, and its log can't be fetched from there: {reason}"
    )
