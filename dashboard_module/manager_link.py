"""The face's way to the JobManager actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from ray_jobs import _ray
from ray_jobs.channel import CallFailed, Channel
from ray_jobs.errors import ServerNotReady
from ray_jobs.manager.actor import ACTOR_NAME, MAX_CONCURRENCY, JobManager
from ray_jobs.manager.face_channel import connect_to_manager
from ray_jobs.manager.supervisors import HEAD_RESOURCE, HEAD_RESOURCE_SHARE
from ray_jobs.supervisor.node import work_dir

from .ray_ports import cluster_trouble

logger = logging.getLogger(__name__)

#: How long a call waits for a manager that is being restarted, before the client gets a 503.
CALL_TIMEOUT_S = 60.0
RETRY_AFTER_S = 1


class RayManager:
    """`ManagerPort` by way of Ray.

    Args:
        connect: Connects this process to the cluster. Blocking.
        beside_ray: Ray's own job server is in use too: its jobs are to be followed.
    """

    def __init__(self, connect: Callable[[], None], *, beside_ray: bool) -> None:
        self._connect = connect
        self._beside_ray = beside_ray
        self._channel: Channel | None = None
        self._connecting = asyncio.Lock()
        self._handle: Any = None
        self._connected = False
        self._lock = asyncio.Lock()

    async def attach(self, create: bool) -> bool:
        """Find the manager, or start it if `create`. Returns whether there is one."""
        if self._handle is not None:
            return True
        async with self._lock:
            if self._handle is None:
                with cluster_trouble():
                    self._handle = await asyncio.to_thread(self._find, create)
        return self._handle is not None

    def _find(self, create: bool) -> Any:
        if not self._connected:
            self._connect()
            self._connected = True
        if create:
            return start_manager()
        try:
            return ray.get_actor(ACTOR_NAME, namespace=_ray.NAMESPACE)
        except ValueError:
            return None

    async def submit(self, request_json: bytes, request_key: str) -> bytes:
        return await self._call("submit", request_json, request_key)

    async def stop(self, submission_id: str) -> bytes:
        return await self._call("stop", submission_id)

    async def delete(self, submission_id: str) -> bytes:
        return await self._call("delete", submission_id)

    async def changes(self, epoch: int, since: int, timeout_s: float) -> bytes:
        return await self._call("changes", epoch, since, timeout_s, self._beside_ray)

    async def _call(self, method: str, *args: Any) -> bytes:
        """Call the manager: through its channel, or as an actor while there is none.

        Ray repeats an actor call while the manager restarts. Each call is idempotent.
        """
        await self.attach(create=True)
        try:
            return await asyncio.wait_for(self._call_somehow(method, *args), CALL_TIMEOUT_S)
        except RayActorError as error:
            self._handle = None  # dead for good: the next call finds or starts another
            raise not_ready(error) from None
        except (RayError, CallFailed, asyncio.TimeoutError) as error:
            raise not_ready(error) from None

    async def _call_somehow(self, method: str, *args: Any) -> bytes:
        try:
            async with self._connecting:
                if self._channel is None or not self._channel.is_open:
                    self._channel = await connect_to_manager(work_dir())
                channel = self._channel
            answer: bytes = await channel.call(method, *args)
        except OSError as error:
            logger.info("The manager is called as an actor: %s", error)
            call = getattr(self._handle, method).options(max_task_retries=-1)
            answer = await call.remote(*args)
        return answer


def start_manager() -> Any:
    """Start the cluster's JobManager, or return it if it runs. Blocking."""
    return (
        ray.remote(JobManager)
        .options(
            name=ACTOR_NAME,
            namespace=_ray.NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
            # By resource, not by node id: a restarted head is a new node.
            resources={HEAD_RESOURCE: HEAD_RESOURCE_SHARE},
            max_concurrency=MAX_CONCURRENCY,
            enable_task_events=False,
            runtime_env={"env_vars": {_ray.NICENESS_VARIABLE: "0"}},
        )
        .remote()
    )


def not_ready(error: Exception) -> ServerNotReady:
    logger.warning("The JobManager can't be reached: %s", error)
    return ServerNotReady(
        "The job manager is being restarted; try again.", retry_after_s=RETRY_AFTER_S
    )
