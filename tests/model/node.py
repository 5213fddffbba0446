"""A node in memory: its folders, its zygote and keepers, and the jobs' processes.

As ray_jobs/keeper and ray_jobs/supervisor/node.py do it, without processes: an attempt belongs to
who makes its folder, a keeper lives on without its supervisor, a job without its keeper.
"""

from __future__ import annotations

import asyncio
import json
import os.path
import random
from collections.abc import Callable
from typing import Any, Protocol

from tests.model.loop import NOBODYS, PROCESS

SIGKILL = 9
#: How long a keeper takes from a child's end to its report, at most.
REAP_S = 0.05
#: To connect to the zygote takes so long at most. Its fork may take much longer.
CONNECT_S = 0.005


class NodeWatcher(Protocol):
    """Who judges what runs."""

    def begins(self, node: Node, attempt: str) -> None:
        """An entrypoint is about to begin."""

    def ends(self, attempt: str, code: int) -> None:
        """An entrypoint has ended by itself, under a keeper that lives."""

    def is_disturbed(self, attempt: str, reason: str) -> None:
        """A keeper was killed, its node has died, or it couldn't be started."""

    def is_stopped(self, attempt: str, signal: int) -> None:
        """A keeper that lives is told to end its job."""

    def is_forgotten(self, attempt: str) -> None:
        """The folder of an attempt is about to be removed."""


class Pipe:
    """The writing end of a connection to a keeper or zygote."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Callable[[dict[str, Any]], None]):
        self.reader = asyncio.StreamReader(loop=loop)
        self._hear = hear
        self._loop = loop

    def write(self, data: bytes) -> None:
        self._loop.call_soon(self._hear, json.loads(data), context=NOBODYS.copy())

    def close(self) -> None:
        """Nothing is left to do: keepers live without their supervisors."""

    def say(self, message: dict[str, Any]) -> None:
        if not self.reader.at_eof():
            self.reader.feed_data(json.dumps(message).encode() + b"\n")


class Keeper:
    """The keeper of one attempt, and the entrypoint."""

    def __init__(self, node: Node, order: dict[str, Any], pipe: Pipe) -> None:
        self.node = node
        self.attempt: str = order["attempt"]
        self.directory: str = order["directory"]
        self.log_path: str = order["log_path"]
        self.status: dict[str, Any] = {"state": "starting", "attempt": self.attempt}
        self.pipes = [pipe]
        self.is_alive = True
        self.listens = False
        self.entrypoint_runs = False
        self.ignores_sigterm = node.rng.random() < 0.3
        self._ends = False
        self._node_died = False
        #: Orders that it reads once the entrypoint has begun.
        self._unread: list[dict[str, Any]] = []

    def claim(self) -> None:
        if self.directory in self.node.folders:
            self._tell({"state": "exists", "attempt": self.attempt})
            self._leave()
            return
        self.node.folders[self.directory] = {}
        self.node.keepers.append(self)
        self.node.later(self.node.fork_s(), self._link)

    def _link(self) -> None:
        if not self.is_alive:
            return
        if self.directory in self.node.given_up:
            self._tell({"state": "exists", "attempt": self.attempt})
            self._leave()
            return
        self.node.begun.add(self.directory)
        self.node.later(self.node.fork_s(), self._begin)

    def _begin(self) -> None:
        if not self.is_alive:
            return
        self._note(listens=True)
        self.node.later(self.node.fork_s(), self._spawn)

    def _spawn(self) -> None:
        if not self.is_alive:
            return
        if not self.node.is_alive:
            self._leave()
            return
        self.node.watcher.begins(self.node, self.attempt)
        self.entrypoint_runs = True
        self.node.write_log(self.log_path, b"begun\n")
        self.status["started_at_ms"] = self.node.now_ms()
        self._note(state="running")
        if self.node.rng.random() < self.node.short_jobs:
            code = self.node.rng.choice((0, 0, 1, 3))
            self.node.later(self.node.rng.uniform(0, 0.5), self.exit, code)
        for message in self._unread:
            self._obey(message)

    def exit(self, code: int) -> None:
        """The entrypoint ends by itself."""
        if not self.entrypoint_runs:
            return
        self.node.write_log(self.log_path, b"ended\n")
        if self.is_alive and not self._ends:
            self.node.watcher.ends(self.attempt, code)
        self._end(code)

    def _end(self, code: int) -> None:
        self.entrypoint_runs = False
        if self.is_alive and not self._ends:
            self._ends = True
            self.node.later(self.node.rng.uniform(0, REAP_S), self._report, code)

    def _report(self, code: int) -> None:
        if self.is_alive:
            ended_at_ms = self.node.now_ms()
            self.status.update(code=code, ended_at_ms=ended_at_ms, node_died=self._node_died)
            self._note(state="exited")
            self.node.later(self.node.rng.uniform(0, REAP_S), self._leave)

    def hear(self, message: dict[str, Any]) -> None:
        if self.is_alive:
            self.node.watcher.is_stopped(self.attempt, message["signal"])
        self._obey(message)

    def _obey(self, message: dict[str, Any]) -> None:
        if self.is_alive and self.status["state"] == "starting":
            self._unread.append(message)
            return
        if not self.is_alive or self._ends or self.status.get("stopped"):
            return
        self.status["stopped"] = True
        dies_in_s = self.node.rng.uniform(0, message["wait_s"])
        if message["signal"] == SIGKILL:
            dies_in_s = 0.0
        elif self.ignores_sigterm:
            dies_in_s = message["wait_s"]
        self.node.later(dies_in_s, self._end_if_it_runs, -message["signal"])

    def _end_if_it_runs(self, code: int) -> None:
        if self.entrypoint_runs:
            self._end(code)

    def kill(self) -> None:
        """`kill -9` of the keeper: the job's processes live on."""
        if self.is_alive:
            if not self.status.get("ended_at_ms"):
                self.node.watcher.is_disturbed(self.attempt, "keeper")
            self._leave()

    def node_dies(self) -> None:
        """The job is gone, which is reported if somebody listens still."""
        self.node.watcher.is_disturbed(self.attempt, "node")
        self._node_died = True
        self._end_if_it_runs(-SIGKILL)

    def connect(self, pipe: Pipe) -> None:
        self.pipes.append(pipe)
        pipe.say(self.status)

    def _note(self, state: str = "starting", listens: bool = True) -> None:
        self.status["state"] = state
        self.listens = listens
        if self.directory in self.node.folders:
            self.node.folders[self.directory] = dict(self.status)
        if state != "starting":
            self._tell(self.status)

    def _tell(self, message: dict[str, Any]) -> None:
        for pipe in self.pipes:
            pipe.say(message)

    def _leave(self) -> None:
        self.is_alive = self.listens = False
        for pipe in self.pipes:
            if not pipe.reader.at_eof():
                pipe.reader.feed_eof()


class Node:
    """One node. `is_head`: where manager and pool are."""

    def __init__(
        self,
        node_id: str,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        watcher: NodeWatcher,
        *,
        is_head: bool,
        now_ms: Callable[[], int],
    ) -> None:
        self.id = node_id
        self.is_head = is_head
        self.is_alive = True
        self.rng = rng
        self.watcher = watcher
        self.now_ms = now_ms
        #: What the status file of each attempt's folder says; empty before it is written.
        self.folders: dict[str, dict[str, Any]] = {}
        #: Of the folders: those that a keeper has made its own after it made them, and those that
        #: none may any more.
        self.begun: set[str] = set()
        self.given_up: set[str] = set()
        self.logs: dict[str, bytes] = {}
        self.keepers: list[Keeper] = []
        #: How many of the jobs end by themselves within a moment.
        self.short_jobs = 0.4
        #: How many of the zygotes are killed between a connection and its fork.
        self.killed_zygotes = 0.03
        #: How many of the jobs can't even be started, for a full disk say.
        self.failing_starts = 0.03
        #: A fork takes so long at most, in seconds.
        self.slowest_fork_s = 0.005
        #: Whether Ray can start actors here. It can't while its disk is full, say.
        self.starts_actors = True
        self.log_grew = asyncio.Event()
        self._loop = loop

    def later(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self._loop.call_later(delay_s, call, *args, context=NOBODYS.copy())

    def fork_s(self) -> float:
        return self.rng.uniform(0, self.slowest_fork_s)

    def write_log(self, path: str, data: bytes) -> None:
        self.logs[path] = self.logs.get(path, b"") + data
        grew, self.log_grew = self.log_grew, asyncio.Event()
        grew.set()

    def die(self) -> None:
        """The node ends, and with it all that runs here."""
        self.is_alive = False
        for keeper in self.keepers:
            # What the manager hasn't recorded yet is lost with the node.
            self.watcher.is_disturbed(keeper.attempt, "node")
            keeper.node_dies()

    # --- what a supervisor calls ----------------------------------------------------------------

    def entrypoint_argv(self, order: dict[str, Any]) -> list[str]:
        if self.rng.random() < self.failing_starts:
            self.watcher.is_disturbed(order["attempt"], "start")
            raise OSError("No space left on device")
        return []

    async def connect_to_zygote(self) -> tuple[asyncio.StreamReader, Pipe]:
        await asyncio.sleep(self.rng.uniform(0, CONNECT_S))

        def hear(message: dict[str, Any]) -> None:
            if keepers:
                keepers[0].hear(message)
                return
            if self.rng.random() < self.killed_zygotes:
                pipe.reader.set_exception(ConnectionResetError())
                return
            keeper = Keeper(self, message, pipe)
            keepers.append(keeper)
            self.later(self.fork_s(), keeper.claim)

        keepers: list[Keeper] = []
        pipe = Pipe(self._loop, hear)
        return pipe.reader, pipe

    async def connect_to_keeper(self, directory: str) -> tuple[asyncio.StreamReader, Pipe]:
        await asyncio.sleep(0)
        for keeper in self.keepers:
            if keeper.directory == directory and keeper.listens:
                pipe = Pipe(self._loop, keeper.hear)
                keeper.connect(pipe)
                return pipe.reader, pipe
        raise ConnectionRefusedError if self.folders.get(directory) else FileNotFoundError

    def claim(self, directory: str) -> bool:
        if directory in self.folders:
            return False
        self.folders[directory] = {}
        return True

    def forget(self, directory: str) -> None:
        if directory in self.folders:
            self.watcher.is_forgotten(os.path.basename(directory))
            del self.folders[directory]

    def never_begins(self, directory: str) -> bool:
        if self.folders.get(directory):
            return False
        if directory not in self.begun:
            self.given_up.add(directory)
        return directory in self.given_up or self.keeper_is_gone(directory)

    def keeper_is_gone(self, directory: str) -> bool:
        return not any(each.is_alive and each.directory == directory for each in self.keepers)

    def kill_left(self, attempt: str) -> None:
        for keeper in self.keepers:
            if keeper.attempt == attempt:
                keeper._end_if_it_runs(-SIGKILL)


class Growth:
    """`Growth` on the node of the process that looks."""

    def waiter(self, path: str) -> GrowthWaiter:
        return GrowthWaiter()


class GrowthWaiter:
    """Waits for any log of the node."""

    def __init__(self) -> None:
        self._node: Node = PROCESS.get().node
        self._woken = asyncio.Event()

    def __enter__(self) -> GrowthWaiter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wake(self) -> None:
        self._woken.set()

    async def wait(self, timeout_s: float | None = None) -> None:
        waits = [asyncio.ensure_future(e.wait()) for e in (self._woken, self._node.log_grew)]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
