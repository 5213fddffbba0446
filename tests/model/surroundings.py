"""Puts a world in the place of Ray, of time and of the node, for manager and supervisors."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import types
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

from ray_jobs import _ray, store
from ray_jobs.manager import (
    actor,
    adopting,
    environments,
    foreign,
    joblog,
    pool,
    recovery,
    retention,
    runner,
    seats,
    supervisors,
    times,
)
from ray_jobs.supervisor import actor as supervisor_actor
from ray_jobs.supervisor.node import tells_end
from tests.model.actors import actor_id
from tests.model.loop import EPOCH_S, PROCESS
from tests.model.node import Growth, Node

#: Modules that look at the clock, and that name things at random.
TIMED = (store, environments, foreign, pool, supervisors, supervisor_actor)
NAMING = (actor, joblog, runner, supervisors)
#: A worker's log is elsewhere than the head's.
WORK_DIR = "/model/ray_jobs"
LOGS_DIR = "/model/logs"
ENVIRONMENT = {
    "RAY_JOB_START_TIMEOUT_SECONDS": "1000000",
    "RAY_JOBS_WARM_IDLE_S": "5",
    "RAY_JOB_STOP_WAIT_TIME_S": "1",
}


def here() -> Node:
    """Return the node of the process that asks."""
    node: Node = PROCESS.get().node
    return node


class Logs(joblog.JobLogs):
    """The logs of the head, in memory."""

    def __init__(self, directory: str, bound: Any = None) -> None:
        super().__init__(directory)
        self._files = here().logs

    def mark_head(self, work_dir: str) -> None:
        here().logs["head-token"] = self.head_token.encode()

    def begin(self, record: Any) -> None:
        self._files.pop(self.path(record.submission_id), None)

    def append(self, submission_id: str, text: str) -> None:
        here().write_log(self.path(submission_id), text.encode())

    def size(self, submission_id: str) -> int:
        return len(self._files.get(self.path(submission_id), b""))

    def _write_at(self, submission_id: str, position: int, data: bytes) -> None:
        known = self.size(submission_id) - position
        here().write_log(self.path(submission_id), data[max(0, known) :])


async def _connect_to_zygote(source: str) -> Any:
    return await here().connect_to_zygote()


async def _connect_unix(directory: str, name: str) -> Any:
    return await here().connect_to_keeper(directory)


def _no_socket(*_: Any) -> Any:
    raise OSError("Here are no sockets.")


async def _no_faces(*_: Any) -> None:
    """Faces of the model call the manager as an actor."""


def _of_node() -> dict[str, Any]:
    """Return what stands in for the functions of its node that the supervisor uses."""
    return {
        "connect_to_zygote": _connect_to_zygote,
        "connect_unix": _connect_unix,
        "attempt_dir": lambda attempt: f"{WORK_DIR}/attempts/{attempt}",
        "claim": lambda directory: here().claim(directory),
        "forget": lambda directory: here().forget(directory),
        "is_claimed": lambda directory: directory in here().folders,
        "read_status": lambda directory: here().folders.get(directory, {}),
        "never_begins": lambda directory: here().never_begins(directory),
        "keeper_is_gone": lambda directory: here().keeper_is_gone(directory),
        "kill_left": lambda attempt: here().kill_left(attempt),
        "entrypoint_argv": lambda order: here().entrypoint_argv(order),
        "entrypoint_env": lambda order, surroundings: {},
        "Surroundings": lambda: types.SimpleNamespace(cwd="/", niceness=0, oom_score=0, boot_id=""),
        "listen": _no_socket,
        "logs_dir": lambda: LOGS_DIR,
        "work_dir": lambda: WORK_DIR,
        "read_text": lambda path: here().logs.get("head-token", b"").decode(),
        "Growth": Growth,
        "read_at": lambda path, start, size: here().logs.get(path, b"")[start : start + size],
        "last_lines": lambda path: "",
        "set_aside": lambda path: here().logs.pop(path, None),
        # Its folders aren't there.
        "os": types.SimpleNamespace(path=os.path, makedirs=lambda *_, **__: None),
    }


def _of_head(world: Any) -> list[tuple[types.ModuleType, dict[str, Any]]]:
    """Return what stands in for the parts of modules that reach out of the manager."""
    manager = {
        "JobLogs": Logs,
        "serve_faces": _no_faces,
        "work_dir": lambda: WORK_DIR,
        "leave": lambda: PROCESS.get().kill(),
        "attempts_here": lambda: [os.path.basename(each) for each in here().folders],
        "forget_ended": _forget_ended,
        "forget_sockets": _no_names,
    }
    actors = {"_supervisor_class": lambda: world.supervisors, "zygote_source": lambda: ""}
    # Its marks on the collector would outlive each world.
    collector = {"gc": types.SimpleNamespace(disable=int, enable=int, freeze=int)}
    cluster = {
        "Kv": lambda: world.kv,
        "actor_id": actor_id,
        "unborn_actors": world.supervisors.unborn_actors,
        "logs_dir": lambda: LOGS_DIR,
        "node_lives": lambda node_id: any(
            each.id == node_id and each.is_alive for each in world.supervisors.nodes
        ),
        "dashboard_url": _no_url,
        "AgentAddresses": AgentAddresses,
        "RuntimeEnvAgent": lambda: world.agent,
        "node_memory_bytes": lambda: 2.0**40,
        "normalised_runtime_env": lambda given: given,
        "internal_env_vars": list,
    }
    archive = {
        "open_archive": lambda place, default: world.archive,
        "open_log": lambda path: None,
        "wall_ms": lambda: int((EPOCH_S + world.loop.time()) * 1000),
        "boot_ms": lambda: int(world.loop.time() * 1000),
    }
    folders = {
        "attempt_path": lambda attempt: f"{WORK_DIR}/attempts/{attempt}",
        "is_claimed": lambda directory: directory in here().folders,
    }
    return [
        (actor, manager),
        (adopting, folders),
        (seats, {"forget_ended": _forget_ended, "forget_channel": _no_names}),
        (supervisors, actors),
        (recovery, collector),
        (retention, archive),
        (_ray, cluster),
    ]


def _no_names(*_: str) -> None:
    """There are no sockets, nor names of any."""


def _forget_ended(attempts: Iterable[str]) -> None:
    for attempt in attempts:
        directory = f"{WORK_DIR}/attempts/{attempt}"
        if tells_end(here().folders.get(directory, {})):
            here().forget(directory)


class AgentAddresses:
    """Of nodes without agents. The KV is asked all the same."""

    def __init__(self, kv: Any) -> None:
        self._kv = kv

    async def of(self, node_id: str) -> str | None:
        await self._kv.get(b"dashboard", node_id)
        return None


async def _no_url(kv: Any) -> None:
    """There is no dashboard."""


@contextlib.contextmanager
def surroundings(world: Any, environ: dict[str, str]) -> Iterator[None]:
    """Have the product work in a world until the end of the context.

    Args:
        environ: More variables of the head.
    """
    numbers = itertools.count(1)
    time = types.SimpleNamespace(
        monotonic=lambda: world.loop.time(), time=lambda: EPOCH_S + world.loop.time()
    )
    uuid = types.SimpleNamespace(uuid4=lambda: types.SimpleNamespace(hex=f"{next(numbers):06x}"))
    ray = types.SimpleNamespace(
        get_runtime_context=lambda: world.context,
        get_actor=world.supervisors.get_actor,
        kill=world.supervisors.kill,
        util=types.SimpleNamespace(list_named_actors=world.supervisors.list_named_actors),
    )
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        put(mock.patch.dict(os.environ, {**ENVIRONMENT, **environ}))
        for module in TIMED:
            put(mock.patch.object(module, "time", time))
        put(
            mock.patch.multiple(
                times,
                wall_ms=lambda: int(time.time() * 1000),
                boot_ms=lambda: int(time.monotonic() * 1000),
                wall_and_boot_ms=lambda: (int(time.time() * 1000), int(time.monotonic() * 1000)),
                raylet_pid=lambda: 0,
                process_age_ms=lambda _: int(time.monotonic() * 1000),
            )
        )
        for module in NAMING:
            put(mock.patch.object(module, "uuid", uuid))
        for module in (actor, supervisors, supervisor_actor):
            put(mock.patch.object(module, "ray", ray))
        put(mock.patch.multiple(supervisor_actor, **_of_node()))
        for module, parts in _of_head(world):
            put(mock.patch.multiple(module, **parts))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
