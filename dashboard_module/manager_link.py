"""The face's way to the JobManager actor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from ray_jobs import _ray
from ray_jobs.channel import CallFailed, Channel
from ray_jobs.claims import VERSION, Claim, latest_claim
from ray_jobs.errors import ServerNotReady
from ray_jobs.kv import KeyValueStore
from ray_jobs.manager.actor import ACTOR_NAME, MAX_CONCURRENCY, JobManager
from ray_jobs.manager.face_channel import connect_to_manager
from ray_jobs.manager.supervisors import HEAD_RESOURCE, HEAD_RESOURCE_SHARE
from ray_jobs.supervisor.node import work_dir
from ray_jobs.timeouts import timeout

from .ray_ports import cluster_trouble

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a call waits for a manager that is being restarted, before the client gets a 503.
CALL_TIMEOUT_S = 60.0
RETRY_AFTER_S = 1
#: How long a replaced manager may keep its name, and how often is looked, in seconds.
NAME_TIMEOUT_S = 15.0
NAME_RETRY_S = 0.05
#: How often is looked whether a restarted manager listens, in seconds; less and less often. Nobody
#: tells: its socket's file is there before.
LISTENS_RETRY_S = 0.02
LAST_LISTENS_RETRY_S = 0.5
#: A channel that is broken so often belongs to a manager that doesn't take this process's calls.
CHANNEL_TRIES = 3


class RayManager:
    """`ManagerPort` by way of Ray.

    Args:
        kv: The cluster's.
        connect: Connects this process to the cluster. Blocking.
        beside_ray: Ray's own job server is in use too: its jobs are to be followed.
    """

    def __init__(self, kv: KeyValueStore, connect: Callable[[], None], *, beside_ray: bool) -> None:
        self._kv = kv
        self._connect = connect
        self._beside_ray = beside_ray
        self._channel: Channel | None = None
        self._connecting = asyncio.Lock()
        self._handle: Any = None
        #: What waits for the manager of a handle to be back.
        self._returning: tuple[Any, asyncio.Task[bool]] | None = None
        self._connected = False
        self._lock = asyncio.Lock()
        #: Searches on their way, by whether they create.
        self._searches: dict[bool, asyncio.Task[None]] = {}

    async def attach(self, create: bool) -> bool:
        """Find the manager, or start it if `create`. Returns whether there is one.

        One of an earlier version is replaced. Where there was one there will be one again.
        Raises `ServerNotReady`, also when it takes too long: the search goes on then.
        """
        if self._handle is None:
            search = self._searches.get(create)
            if search is None or search.done():
                search = self._searches[create] = unattended(self._search(create))
            try:
                # What it does in a thread can't be cancelled, and mustn't be done twice at once.
                async with timeout(CALL_TIMEOUT_S):
                    await asyncio.shield(search)
            except asyncio.TimeoutError as error:
                raise not_ready(error) from None
        return self._handle is not None

    async def _search(self, create: bool) -> None:
        async with self._lock:
            if self._handle is None:
                with cluster_trouble():
                    self._handle = await self._find(create)
                self._hang_up()  # it may be another manager's channel

    async def _find(self, create: bool) -> Any:
        claim = await latest_claim(self._kv)
        if claim is None and not create:
            return None  # nothing was ever submitted: not even a connection is made
        if not self._connected:
            await asyncio.to_thread(self._connect)
            self._connected = True
        manager = await asyncio.to_thread(find_manager)
        if manager is None:
            return await asyncio.to_thread(start_manager)
        while claim is not None and is_outdated(manager, claim):
            # Ray may have restarted it meanwhile, under its id but with the new code.
            seen, claim = claim, await latest_claim(self._kv)
            if claim == seen:
                logger.warning("The manager of version %s gives way to %s.", seen.version, VERSION)
                return await asyncio.to_thread(replace_manager, manager)
        return manager

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.abort()
            self._channel = None

    async def submit(self, request_json: bytes, request_key: str) -> bytes:
        return await self._call("submit", request_json, request_key)

    async def stop(self, submission_id: str) -> bytes:
        return await self._call("stop", submission_id)

    async def delete(self, submission_id: str) -> bytes:
        return await self._call("delete", submission_id)

    async def changes(self, epoch: int, since: int, timeout_s: float) -> bytes:
        return await self._call("changes", epoch, since, timeout_s, self._beside_ray)

    async def _call(self, method: str, *args: Any) -> bytes:
        """Call the manager: through its channel, or as an actor where there is none.

        A call is repeated if the manager dies under it. None does harm then.
        """
        try:
            async with timeout(CALL_TIMEOUT_S):
                return await self._call_somehow(method, *args)
        except (RayError, CallFailed, asyncio.TimeoutError) as error:
            raise not_ready(error) from None

    async def _call_somehow(self, method: str, *args: Any) -> bytes:
        await self.attach(create=True)
        handle = self._handle  # another call may forget it meanwhile
        if handle is None:
            raise CallFailed("The manager has died.")
        try:
            return await self._call_manager(handle, method, *args)
        except RayActorError:
            if self._handle is handle:
                self._handle = None  # dead for good: the next call finds or starts another
            raise

    async def _call_manager(self, handle: Any, method: str, *args: Any) -> bytes:
        for _ in range(CHANNEL_TRIES):
            try:
                channel = await self._open_channel(handle)
                answer: bytes = await channel.call(method, *args)
                return answer
            except OSError as error:
                logger.info("The manager doesn't listen: %s", error)
            if not await self._is_back(handle):
                break
        logger.info("The manager is called as an actor.")
        found: bytes = await call_as_actor(handle, method, *args)
        return found

    async def _open_channel(self, handle: Any) -> Channel:
        """Return the channel of a manager. Raises OSError where it doesn't listen."""
        async with self._connecting:
            channel = self._channel
            if channel is None or not channel.is_open:
                channel = await connect_to_manager(work_dir(), _ray.actor_id(handle))
            if handle is not self._handle:
                if channel is not self._channel:
                    channel.abort()
                raise ConnectionError("Another manager has taken its place.")
            self._channel = channel
            return channel

    async def _is_back(self, handle: Any) -> bool:
        """Wait for a manager that is being restarted. Returns whether it listens.

        Raises `RayActorError` when it is dead for good.
        """
        if self._returning is None or self._returning[0] is not handle or self._returning[1].done():
            self._returning = handle, unattended(self._until_back(handle))
        return await asyncio.shield(self._returning[1])

    async def _until_back(self, handle: Any) -> bool:
        """Wait until a manager listens, or has answered as an actor though it doesn't.

        Ray repeats calls of a restarted actor up to a second after that can take them.
        """
        began = time.monotonic()
        answered = unattended(call_as_actor(handle, "accepts"))
        try:
            while True:
                is_answered = answered.done()
                with contextlib.suppress(OSError):
                    await self._open_channel(handle)
                    return True
                if is_answered:
                    answered.result()
                    return False
                pause_s = LISTENS_RETRY_S * (1 + time.monotonic() - began)
                await asyncio.wait((answered,), timeout=min(pause_s, LAST_LISTENS_RETRY_S))
        finally:
            answered.cancel()


def unattended(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Return a task that may fail when nobody waits for it any more."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def call_as_actor(handle: Any, method: str, *args: Any) -> Any:
    """Return an actor's answer. Ray calls again whenever the actor was restarted under the call."""
    return await getattr(handle, method).options(max_task_retries=-1).remote(*args)


def find_manager() -> Any | None:
    """Return the cluster's JobManager, or None. Blocking."""
    try:
        return ray.get_actor(ACTOR_NAME, namespace=_ray.NAMESPACE)
    except ValueError:
        return None


def is_outdated(manager: Any, claim: Claim) -> bool:
    """Return whether a manager, by its claim, is of a version before this one.

    The claim of another says nothing of it: it has just been started, and has claimed nothing yet.
    """
    return claim.actor_id == _ray.actor_id(manager) and claim.gives_way_to(VERSION)


def replace_manager(manager: Any) -> Any:
    """End a manager and start another, or return the one that somebody else started. Blocking."""
    old = _ray.actor_id(manager)
    ray.kill(manager, no_restart=True)
    deadline = time.monotonic() + NAME_TIMEOUT_S
    while True:
        successor = start_manager()
        if _ray.actor_id(successor) != old or time.monotonic() > deadline:
            return successor
        # Ray frees the name of a dead actor in a moment, and tells nobody when.
        time.sleep(NAME_RETRY_S)


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
