"""Clients that follow a log, each in its own way, and what they have got so far."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient
from tests.cluster import BIN, Cluster

READ_BYTES = 64 * 1024
GROWTH_TIMEOUT_S = 60.0
RETRY_S = 0.02


class Tails:
    """One job's log followed by the asynchronous client, the blocking one, and the command line."""

    def __init__(
        self, cluster: Cluster, client: AsyncJobSubmissionClient, address: str, job_id: str
    ) -> None:
        self.got = [bytearray(), bytearray(), bytearray()]
        works: list[Coroutine[Any, Any, None]] = [
            _follow(self.got[0], client, job_id),
            asyncio.to_thread(_follow_blocking, self.got[1], address, job_id),
            _follow_at_a_shell(self.got[2], cluster, address, job_id),
        ]
        self._tasks = [asyncio.ensure_future(work) for work in works]

    def check_none_is_over(self) -> None:
        assert not any(task.done() for task in self._tasks)

    async def grown(self) -> None:
        """Return once each has got something more than now."""
        sizes = [len(each) for each in self.got]
        deadline = time.monotonic() + GROWTH_TIMEOUT_S
        while any(len(each) == size for each, size in zip(self.got, sizes, strict=True)):
            self.check_none_is_over()
            assert time.monotonic() < deadline, "a tail has ceased"
            await asyncio.sleep(RETRY_S)

    async def end(self, timeout_s: float) -> None:
        """Return once each has come to its end."""
        await asyncio.wait_for(asyncio.gather(*self._tasks), timeout_s)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


async def _follow(got: bytearray, client: AsyncJobSubmissionClient, job_id: str) -> None:
    async for chunk in client.tail_job_logs(job_id):
        got += chunk.encode()


def _follow_blocking(got: bytearray, address: str, job_id: str) -> None:
    with JobSubmissionClient(address) as client:
        for chunk in client.tail_job_logs(job_id):
            got += chunk.encode()


async def _follow_at_a_shell(got: bytearray, cluster: Cluster, address: str, job_id: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(BIN / "ray-jobs"), "logs", "-f", "--address", address, job_id),
        env=cluster.env,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while data := await process.stdout.read(READ_BYTES):
        got += data
    assert await process.wait() == 0
