"""The JobSupervisor actor. It runs no user code itself: a keeper does (see ray_jobs/keeper), and
lives on when the supervisor dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import ray

from ray_jobs.channel import ChannelServer
from ray_jobs.growth import Growth
from ray_jobs.keeper.files import CONTROL_SOCKET, own_folder
from ray_jobs.keeper.sockets import listen
from ray_jobs.supervisor.attempt import Attempt
from ray_jobs.supervisor.bounding import keep_bounded, trim_once
from ray_jobs.supervisor.entrypoint import (
    Surroundings,
    entrypoint_argv,
    entrypoint_env,
    stop_settings,
)
from ray_jobs.supervisor.logs import drop_copied, last_lines, read_at, read_kept_at, set_aside
from ray_jobs.supervisor.node import (
    HEAD_TOKEN_FILE,
    attempt_dir,
    channel_name,
    claim,
    connect_unix,
    dated,
    end_by_sigterm,
    forget,
    is_claimed,
    keeper_is_gone,
    logs_dir,
    never_begins,
    read_status,
    read_text,
    tells_end,
    work_dir,
)
from ray_jobs.supervisor.orphans import kill_left
from ray_jobs.supervisor.zygotes import connect_to_zygote

logger = logging.getLogger(__name__)

#: Between two looks for a keeper that has claimed its attempt and doesn't listen yet.
KEEPER_RETRY_S = 0.02
#: How many zygotes are asked for a keeper, each killed before it has forked one.
MAX_SPAWNS = 10
CHANNEL_BACKLOG = 8
#: More than can be run while a call that is repeated is on its way.
MAX_RELEASED = 10_000
Spawned = tuple[dict[str, Any], asyncio.StreamReader, asyncio.StreamWriter]


class StaleEpochError(RuntimeError):
    """A manager that has been replaced gave an order."""


class JobSupervisor:
    """Runs attempts on this node. Every order of the manager carries its epoch."""

    def __init__(self, zygote_source: str, adopts_only: bool = False, version: str = "") -> None:
        end_by_sigterm()
        #: Of the ray_jobs that made it, which isn't installed here.
        self._version = version
        #: Made to take over a running job: it isn't in the environment to start one.
        self._adopts_only = adopts_only
        self._zygote_source = zygote_source
        self._epoch = 0
        self._attempts: dict[str, Attempt] = {}
        #: Those that were released last, in that order: an order of one may still come twice.
        self._released: dict[str, None] = {}
        self._surroundings = Surroundings()
        self._growth = Growth()
        self._listening: asyncio.Server | None = None
        self._errand: asyncio.Future[Any] | None = None

    # --- calls of the manager ---------------------------------------------------------------

    async def describe(self, epoch: int, live: list[str] | None = None) -> dict[str, Any]:
        """Return where this supervisor runs, its version, and its attempts.

        Answers once the runtime environment is set up. With `live`, the attempts that a new
        manager knows not to have ended, others are dropped: their ends have been recorded.
        """
        self._accept(epoch)
        dropped = self._attempts.keys() - set(live) if live is not None else set()
        if dropped:
            # Not awaited: what it kills may take a while to be gone.
            self._errand = asyncio.gather(*map(self._drop, dropped))
        context = ray.get_runtime_context()
        return {
            "version": self._version,
            "node_id": context.get_node_id(),
            "head_token": read_text(os.path.join(work_dir(), HEAD_TOKEN_FILE)),
            "attempts": list(self._attempts.keys() - dropped),
        }

    async def open_channel(self) -> str:
        """Serve these calls to a manager on this node too.

        Returns the name of a socket in `work_dir`, which the manager unlinks when it has connected.
        """
        if self._listening is not None:
            self._listening.close()  # for an earlier manager
        name = channel_name(ray.get_runtime_context().get_actor_id())
        own_folder(work_dir())
        calls = (self.run, self.adopt, self.wait, self.stop_attempt, self.abandon, self.release)
        server = ChannelServer({call.__name__: call for call in calls})
        self._listening = await server.serve(listen(work_dir(), name, CHANNEL_BACKLOG))
        return name

    async def hold(self) -> None:
        """Never return. Who awaits it learns at once when this supervisor dies."""
        await asyncio.Event().wait()

    async def run(
        self, epoch: int, order: dict[str, Any], released: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Start an attempt, unless it was started before, and wait for its end as `wait` does.

        The status is `unknown` if it was not started, and never will be.

        Args:
            released: As of `release`: other attempts that may be forgotten.
        """
        await self.release(released)
        if order["attempt"] in self._released:
            # It came through a channel that broke, and then again, when all was over.
            return {"state": "unknown"}
        if self._adopts_only:
            await self.adopt(epoch, order)
        else:
            self._accept(epoch)
            await self._start(self._ordered(order), order)
        return await self.wait(order["attempt"])

    async def adopt(self, epoch: int, order: dict[str, Any]) -> dict[str, Any]:
        """Take over an attempt whose supervisor died. Returns its status.

        The status is `unknown` if the attempt was never started on this node; it never will be
        then, though an order to start it may be on its way still.
        """
        self._accept(epoch)
        attempt = self._ordered(order)
        async with attempt.lock:
            if attempt.task is None and not attempt.finished.is_set():
                if claim(attempt.directory):
                    attempt.status = {"state": "unknown"}
                    attempt.finished.set()
                else:
                    await self._attach(attempt)
            return attempt.status

    async def wait(self, attempt_id: str) -> dict[str, Any]:
        """Wait for the end of an attempt. Returns its status; a failed one's with its last lines.

        Reported until the manager says `release`.
        """
        attempt = self._attempt(attempt_id)
        await attempt.finished.wait()
        if attempt.bounding is not None:
            # Who is told of the end finds the log within its bound: this actor may be ended then.
            await asyncio.wait([attempt.bounding])
        status = dated(attempt.status, self._surroundings.boot_id)
        if status.get("code") == 0:
            return status
        return {**status, "log_tail": last_lines(attempt.log_path)}

    async def stop_attempt(self, epoch: int, attempt_id: str) -> None:
        """Send the stop signal, and SIGKILL after the wait time. No-op if it has ended."""
        self._accept(epoch)
        attempt = self._attempt(attempt_id)
        attempt.stop_requested = True
        self._send_stop(attempt)

    async def read_log(
        self, attempt_id: str, offset: int, max_bytes: int, timeout_s: float
    ) -> tuple[bytes, bool] | tuple[bytes, bool, int]:
        """Return bytes of the log from `offset`, and whether there will never be more.

        Where the log is bounded, and some are missing at `offset`, how many as well: the bytes are
        what follows. Who reads from there has lost them, or isn't the manager any more.

        Waits up to `timeout_s` seconds for some.
        """
        attempt = self._attempt(attempt_id)
        await attempt.known.wait()
        if attempt.copied is not None:
            attempt.copied = max(attempt.copied, offset)
        with self._growth.waiter(attempt.log_path) as growth:
            ended = asyncio.ensure_future(attempt.finished.wait())
            ended.add_done_callback(lambda _: growth.wake())
            try:
                deadline = time.monotonic() + timeout_s
                while True:
                    complete = attempt.finished.is_set()
                    missing, data = (
                        (0, read_at(attempt.log_path, offset, max_bytes))
                        if attempt.max_log_bytes is None
                        else read_kept_at(attempt.log_path, offset, max_bytes)
                    )
                    left_s = deadline - time.monotonic()
                    if complete and not data and attempt.max_log_bytes is not None:
                        # All of it is on the head now.
                        with contextlib.suppress(OSError):
                            path, most = attempt.log_path, attempt.max_log_bytes
                            await trim_once(path, most, attempt.copied)
                    if missing and data:
                        return data, False, missing
                    if data or complete or left_s <= 0:
                        return data, complete and not data
                    await growth.wait(left_s)
            finally:
                ended.cancel()

    async def abandon(self, epoch: int, attempt_id: str) -> None:
        """Kill what is left of an attempt of which the manager has lost hold."""
        self._accept(epoch)
        await self._kill(attempt_id)

    async def _drop(self, attempt_id: str) -> None:
        await self._kill(attempt_id)
        await self.release([attempt_id])

    async def _kill(self, attempt_id: str) -> None:
        attempt = self._attempts.get(attempt_id)
        if attempt is not None and attempt.order_stop(int(signal.SIGKILL), wait_s=0):
            await attempt.finished.wait()
        if attempt is None or attempt.status["state"] != "exited":
            await asyncio.to_thread(kill_left, attempt_id)

    async def release(self, attempt_ids: Sequence[str]) -> None:
        """Forget attempts whose reports the manager has recorded, those that are known here."""
        for attempt_id in attempt_ids:
            attempt = self._attempts.pop(attempt_id, None)
            if attempt is None:
                continue
            self._released[attempt_id] = None
            if len(self._released) > MAX_RELEASED:
                del self._released[next(iter(self._released))]
            # The folder of one that was never started stays: the order may be on its way still.
            if attempt.status["state"] != "unknown":
                forget(attempt.directory)
                if attempt.drops_log:
                    await asyncio.to_thread(drop_copied, attempt.log_path, attempt.copied or 0)

    # --- calls of Ray's own job server, when it comes back while our jobs run -----------------

    async def ping(self) -> None:
        """Answer, so that Ray's own job server sees that the job is supervised."""

    async def stop(self) -> None:
        """Stop what runs here."""
        for attempt in list(self._attempts.values()):
            attempt.stop_requested = True
            self._send_stop(attempt)

    # --- inside -------------------------------------------------------------------------------

    def _accept(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleEpochError(f"Epoch {epoch} was replaced by {self._epoch}.")
        self._epoch = epoch

    def _attempt(self, attempt_id: str) -> Attempt:
        """Return an attempt. Calls may overtake each other: any may be the first that names it."""
        if attempt_id not in self._attempts:
            self._attempts[attempt_id] = Attempt(attempt_id, attempt_dir(attempt_id))
        return self._attempts[attempt_id]

    def _ordered(self, order: dict[str, Any]) -> Attempt:
        attempt = self._attempt(order["attempt"])
        if not attempt.known.is_set():
            attempt.log_path = os.path.join(logs_dir(), order["log_name"])
            attempt.stop_env = order["stop_env"]
            attempt.max_log_bytes = order.get("max_log_bytes")  # not of earlier managers
            # The log of a job on the head is the head's own, without a copy.
            attempt.copied = 0 if order["fresh_log"] else None
            attempt.drops_log = order["fresh_log"] and order.get("drops_copied_log", False)
            attempt.known.set()
        # A new manager's order may be the first to tell of a stop that the former one recorded.
        if order["stop_requested"] and not attempt.stop_requested:
            attempt.stop_requested = True
            self._send_stop(attempt)
        return attempt

    async def _start(self, attempt: Attempt, order: dict[str, Any]) -> None:
        async with attempt.lock:
            if attempt.task is not None or attempt.finished.is_set():
                return
            try:
                await self._begin(attempt, order)
            except Exception as error:
                # A full disk, mostly. It is never begun then: this order may come twice.
                if not claim(attempt.directory):
                    raise
                logger.exception("The attempt %s can't be started.", attempt.id)
                attempt.status = {"state": "failed_to_start", "error": str(error)}
                attempt.finished.set()

    async def _begin(self, attempt: Attempt, order: dict[str, Any]) -> None:
        if order["fresh_log"] and not is_claimed(attempt.directory):
            set_aside(attempt.log_path)
        spawn_order = {
            "attempt": attempt.id,
            "directory": attempt.directory,
            "argv": entrypoint_argv(order),
            "env": entrypoint_env(order, self._surroundings),
            "cwd": self._surroundings.cwd,
            "log_path": attempt.log_path,
            "log_header": order["log_header"],
            "niceness": self._surroundings.niceness,
            "oom_score": self._surroundings.oom_score,
        }
        status, reader, writer = await self._spawned(spawn_order)
        if status["state"] != "exists":
            self._follow(attempt, status, reader, writer)
        else:
            writer.close()
            await self._attach(attempt)

    async def _spawned(self, order: dict[str, Any]) -> Spawned:
        """Have a keeper forked. Returns its first status, and the connection to it.

        Who was asked and says nothing is dead, zygote or keeper: another is asked, unless the
        attempt has been claimed. Raises ConnectionError.
        """
        for _ in range(MAX_SPAWNS):
            reader, writer = await connect_to_zygote(self._zygote_source)
            line = b""
            with contextlib.suppress(ConnectionError):
                writer.write(json.dumps(order).encode() + b"\n")
                line = await reader.readline()
            if line:
                return json.loads(line), reader, writer
            if is_claimed(order["directory"]):
                return {"state": "exists"}, reader, writer
            writer.close()
        raise ConnectionError(f"The node's zygote ended {MAX_SPAWNS} times before it forked.")

    async def _attach(self, attempt: Attempt) -> None:
        """Connect to the keeper of a claimed attempt, or find how it ended."""
        while True:
            try:
                reader, writer = await connect_unix(attempt.directory, CONTROL_SOCKET)
                line = await reader.readline()
                if line:
                    self._follow(attempt, json.loads(line), reader, writer)
                    return
            except (FileNotFoundError, PermissionError, ConnectionError):
                logger.debug("No keeper answers for %s.", attempt.id)
            if never_begins(attempt.directory):
                attempt.status = {"state": "unknown"}
                break
            # In this order: the status is the keeper's last word.
            is_gone = keeper_is_gone(attempt.directory)
            status = read_status(attempt.directory)
            if is_gone or status.get("state", "starting") != "starting":
                attempt.status = await self._outcome_without_keeper(attempt)
                break
            # It has just claimed the attempt, and doesn't listen yet.
            await asyncio.sleep(KEEPER_RETRY_S)
        attempt.finished.set()
        # It may have written while nobody looked.
        self._begin_bounding(attempt)

    def _follow(
        self,
        attempt: Attempt,
        status: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        attempt.status = status
        attempt.writer = writer
        attempt.task = asyncio.ensure_future(self._watch_keeper(attempt, reader))
        self._begin_bounding(attempt)
        if attempt.stop_requested:
            self._send_stop(attempt)

    async def _watch_keeper(self, attempt: Attempt, reader: asyncio.StreamReader) -> None:
        try:
            while attempt.status["state"] in ("starting", "running"):
                line = await reader.readline()
                if not line:
                    attempt.status = await self._outcome_without_keeper(attempt)
                    break
                attempt.status = json.loads(line)
        except (ConnectionError, ValueError):
            attempt.status = await self._outcome_without_keeper(attempt)
        finally:
            if attempt.writer is not None:
                attempt.writer.close()
            attempt.finished.set()

    def _begin_bounding(self, attempt: Attempt) -> None:
        if attempt.max_log_bytes is not None:
            path, most, ended = attempt.log_path, attempt.max_log_bytes, attempt.finished
            bounding = keep_bounded(path, most, self._growth, ended, lambda: attempt.copied)
            attempt.bounding = asyncio.ensure_future(bounding)

    async def _outcome_without_keeper(self, attempt: Attempt) -> dict[str, Any]:
        status = read_status(attempt.directory)
        if tells_end(status):
            return status
        await asyncio.to_thread(kill_left, attempt.id)
        return {**status, "state": "lost", "error": "The job's keeper process was killed."}

    def _send_stop(self, attempt: Attempt) -> None:
        attempt.order_stop(*stop_settings(attempt.stop_env))
