"""Runtime environments of jobs that run under a supervisor which is alive already.

Ray's agent on this node, the head, builds an environment without starting a worker in it. Where it
can't serve, the job gets a supervisor of its own, which Ray starts in the environment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from ray_jobs.records import JobRecord

logger = logging.getLogger(__name__)

#: Fields that need nothing built.
_VARIABLE_FIELDS = frozenset({"env_vars", "config", "excludes", "worker_process_setup_hook"})
#: Fields that Ray's agent builds, and that only change what runs before the entrypoint.
_AGENT_FIELDS = frozenset({"working_dir", "py_modules", "pip", "uv", "conda"})
#: Those of which a build may take minutes.
SLOW_FIELDS = frozenset({"pip", "uv", "conda"})
#: Environments that the agent is asked for at once, of those in which the same takes long. More
#: than one: it may hang, and the next job's variables may lead to another index.
BUILDS_AT_ONCE = 4
_PACKAGE_PREFIX = "gcs://"


@dataclasses.dataclass(frozen=True)
class Built:
    """What an entrypoint needs to run in an environment."""

    env_vars: dict[str, str]
    #: For bash, before the command: "cd DIR &&".
    command_prefix: list[str]
    #: The agent has been asked, and is to be told when the job has ended.
    is_held: bool = False


class EnvironmentFailed(Exception):
    """The environment can't be built. The message holds the installer's own words."""


class AgentUnreachable(Exception):
    """Ray's agent for runtime environments doesn't answer as expected."""


class Agent(Protocol):
    """Ray's agent on this node that builds runtime environments.

    It counts who uses an environment; one that nobody uses may be deleted. For Ray's raylet each
    worker is a user, for us each job. Both calls raise `AgentUnreachable`.
    """

    async def build(self, runtime_env: dict[str, Any], log_files: list[str]) -> dict[str, Any]:
        """Build an environment, or take it from the agent's cache, and count a user more.

        Args:
            log_files: Where the builders' words are logged to, beside Ray's own file.

        Returns:
            `env_vars`, and `command_prefix`: words for bash.

        Raises `EnvironmentFailed`.
        """

    async def release(self, runtime_env: dict[str, Any]) -> None:
        """Count one user of an environment less."""


class NeedsOwnSupervisor(Exception):
    """Only Ray itself can build this environment, with a worker in it."""


class Environments:
    """Builds environments, and lets them go."""

    def __init__(self, agent: Agent, *, streams_log: bool) -> None:
        """`streams_log`: what is said while an environment is built goes into the job's log."""
        self._agent = agent
        self._streams_log = streams_log
        self._tasks: set[asyncio.Future[Any]] = set()
        #: What the agent is building, by what takes long in it.
        self._building: dict[str, set[asyncio.Future[Any]]] = {}

    async def build(self, record: JobRecord, log_path: str) -> Built:
        """Return a job's environment, built.

        Raises `EnvironmentFailed`, and `NeedsOwnSupervisor`. One that is interrupted is let go.
        """
        runtime_env = record.runtime_env or {}
        fields = wanted_fields(runtime_env)
        if fields <= _VARIABLE_FIELDS:
            return Built(dict(runtime_env.get("env_vars") or {}), [])
        if not fields <= _VARIABLE_FIELDS | _AGENT_FIELDS:
            raise NeedsOwnSupervisor
        log_files = [log_path] if self._streams_log else []
        building = await self._begin(runtime_env, log_files)
        try:
            context = await asyncio.shield(building)
        except asyncio.CancelledError:
            building.add_done_callback(functools.partial(self._let_go, runtime_env))
            self._keep(building)
            raise
        except AgentUnreachable as error:
            logger.warning("Ray's runtime_env agent doesn't serve: %s", error)
            raise NeedsOwnSupervisor from None
        return Built(context["env_vars"], context["command_prefix"], is_held=True)

    async def _begin(
        self, runtime_env: dict[str, Any], log_files: list[str]
    ) -> asyncio.Future[dict[str, Any]]:
        """Ask the agent for an environment, once few others are asked for that need the same.

        The agent has those wait for each other. A hundred that do so hold a connection each, and
        others have none.
        """
        wanted = _AGENT_FIELDS & wanted_fields(runtime_env)
        slow = SLOW_FIELDS & wanted
        key = json.dumps({name: runtime_env[name] for name in slow or wanted}, sort_keys=True)
        while len(others := self._building.get(key, set())) >= BUILDS_AT_ONCE:
            done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            if not slow or any(not each.cancelled() and each.exception() is None for each in done):
                break  # the agent has it, or may soon answer all of them
        building = asyncio.ensure_future(self._agent.build(runtime_env, log_files))
        self._building.setdefault(key, set()).add(building)
        building.add_done_callback(functools.partial(self._forget, key))
        return building

    def _forget(self, key: str, building: asyncio.Future[Any]) -> None:
        self._building[key].discard(building)
        if not self._building[key]:
            del self._building[key]

    async def release(self, runtime_env: dict[str, Any]) -> None:
        """Tell the agent that a job doesn't need its environment any more."""
        try:
            await self._agent.release(runtime_env)
        except AgentUnreachable as error:
            logger.warning("An environment stays held: %s", error)

    def _let_go(self, runtime_env: dict[str, Any], building: asyncio.Future[Any]) -> None:
        if not building.cancelled() and building.exception() is None:
            self._keep(asyncio.ensure_future(self.release(runtime_env)))

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def wanted_fields(runtime_env: dict[str, Any]) -> set[str]:
    """Return the fields of a runtime environment that ask for something."""
    return {name for name, value in runtime_env.items() if value and not name.startswith("_")}


def package_uris(runtime_env: dict[str, Any] | None) -> list[str]:
    """Return the packages in the GCS that an environment is built from."""
    env = runtime_env or {}
    modules = env.get("py_modules")
    uris = [env.get("working_dir"), *(modules if isinstance(modules, list) else ())]
    return [uri for uri in uris if isinstance(uri, str) and uri.startswith(_PACKAGE_PREFIX)]


class Pins:
    """Keeps the packages of live jobs in the GCS, from submission to end.

    Ray deletes a package when the last driver or actor that named it has ended; a job may have
    none yet, or start another. A pin runs out by itself, so it is renewed as long as a job lives:
    one timer for all jobs, and a call for each package.
    """

    def __init__(self, pin: Callable[[str], Awaitable[None]], lasts_s: float) -> None:
        self._pin = pin
        self._lasts_s = lasts_s
        self._users: dict[str, int] = {}
        self._pinned_at: dict[str, float] = {}
        self._renewal: asyncio.Task[None] | None = None

    async def hold(self, uris: Iterable[str]) -> None:
        """Keep packages until as many calls of `drop` as of this have named them."""
        held = list(uris)
        for uri in held:  # all of them before the first pin: the job may be stopped meanwhile
            self._users[uri] = self._users.get(uri, 0) + 1
        for uri in held:
            if not self._is_fresh(uri):
                await self._renew(uri)
        if self._users and self._renewal is None:
            self._renewal = asyncio.ensure_future(self._keep_renewing())

    def drop(self, uris: Iterable[str]) -> None:
        """Let packages go: their pins run out."""
        for uri in uris:
            self._users[uri] -= 1
            if not self._users[uri]:
                del self._users[uri]

    def _is_fresh(self, uri: str) -> bool:
        pinned_at = self._pinned_at.get(uri)
        return pinned_at is not None and time.monotonic() - pinned_at < self._lasts_s / 2

    async def _renew(self, uri: str) -> None:
        self._pinned_at[uri] = time.monotonic()
        try:
            await self._pin(uri)
        except Exception:
            self._pinned_at.pop(uri, None)
            logger.exception("The package %s can't be pinned.", uri)

    async def _keep_renewing(self) -> None:
        while self._users:
            await asyncio.sleep(self._lasts_s / 4)
            for uri in list(self._users):
                if not self._is_fresh(uri):
                    await self._renew(uri)
            for uri in self._pinned_at.keys() - self._users.keys():
                del self._pinned_at[uri]
        self._renewal = None
