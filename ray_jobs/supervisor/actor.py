"""The JobSupervisor actor. It runs no user code itself: a keeper does (see ray_jobs/keeper), and
lives on when the supervisor dies.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import time
from typing import Any

import ray

from ray_jobs.inotify import GrowthWatch
from ray_jobs.supervisor.logs import last_lines, read_at, set_aside
from ray_jobs.supervisor.node import (
    CONTROL_SOCKET,
    HEAD_TOKEN_FILE,
    connect_to_zygote,
    connect_unix,
    entrypoint_env,
    kill_marked,
    logs_dir,
    read_status,
    read_text,
    stop_settings,
    work_dir,
)

logger = logging.getLogger(__name__)

#: How long a keeper may take from claiming its attempt to listening.
KEEPER_START_TIMEOUT_S = 5.0
KEEPER_RETRY_S = 0.02


class StaleEpochError(RuntimeError):
    """A manager that has been replaced gave an order."""


class Attempt:
    """One run of one job's entrypoint."""

    def __init__(
        self, attempt: str, directory: str, log_path: str, stop_env: dict[str, str]
    ) -> None:
        self.attempt = attempt
        self.stop_env = stop_env
        self.directory = directory
        self.log_path = log_path
        self.status: dict[str, Any] = {"state": "starting"}
        #: Starting and adopting take turns: each may be asked for twice.
        self.lock = asyncio.Lock()
        self.finished = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.task: asyncio.Task[None] | None = None


class JobSupervisor:
    """Runs attempts on this node. Every order of the manager carries its epoch."""

    def __init__(self, zygote_source: str, adopts_only: bool = False) -> None:
        #: Made to take over a running job: it isn't in the environment to start one.
        self._adopts_only = adopts_only
        self._zygote_source = zygote_source
        self._epoch = 0
        self._attempts: dict[str, Attempt] = {}

    # --- calls of the manager ---------------------------------------------------------------

    async def describe(self, epoch: int) -> dict[str, str]:
        """Return where this supervisor runs. Answers once the runtime environment is set up."""
        self._accept(epoch)
        context = ray.get_runtime_context()
        return {
            "node_id": context.get_node_id(),
            "head_token": read_text(os.path.join(work_dir(), HEAD_TOKEN_FILE)),
        }

    async def start(self, epoch: int, order: dict[str, Any]) -> dict[str, Any]:
        """Start an attempt, or attach to it if it was started before. Returns its status."""
        if self._adopts_only:
            return await self.adopt(epoch, order)
        self._accept(epoch)
        attempt = self._attempt(order)
        async with attempt.lock:
            if attempt.task is not None:
                return attempt.status
            if order["fresh_log"] and not os.path.isdir(attempt.directory):
                set_aside(attempt.log_path)
            reader, writer = await connect_to_zygote(self._zygote_source)
            writer.write(json.dumps(self._spawn_order(attempt, order)).encode() + b"\n")
            line = await reader.readline()
            status = json.loads(line) if line else {"state": "exists"}
            if status["state"] != "exists":
                self._follow(attempt, status, reader, writer)
                return attempt.status
            writer.close()
            return await self._attach(attempt)

    async def adopt(self, epoch: int, order: dict[str, Any]) -> dict[str, Any]:
        """Take over an attempt whose supervisor died. Returns its status.

        The status is `unknown` if the attempt was never started on this node; it never will be
        then, though an order to start it may be on its way still.
        """
        self._accept(epoch)
        attempt = self._attempt(order)
        async with attempt.lock:
            if attempt.task is not None:
                return attempt.status
            os.makedirs(os.path.dirname(attempt.directory), 0o700, exist_ok=True)
            try:
                os.mkdir(attempt.directory, 0o700)  # what a keeper claims the attempt by
            except FileExistsError:
                return await self._attach(attempt)
            return {"state": "unknown"}

    async def wait(self, attempt_id: str) -> dict[str, Any]:
        """Wait for the end of an attempt. Returns its status, with the end of its log."""
        attempt = self._attempts[attempt_id]
        await attempt.finished.wait()
        return {**attempt.status, "log_tail": last_lines(attempt.log_path)}

    async def stop_attempt(self, epoch: int, attempt_id: str) -> None:
        """Send the stop signal, and SIGKILL after the wait time. No-op if it has ended."""
        self._accept(epoch)
        self._send_stop(self._attempts[attempt_id])

    async def read_log(
        self, attempt_id: str, offset: int, max_bytes: int, timeout_s: float
    ) -> tuple[bytes, bool]:
        """Return bytes of the log from `offset`, and whether there will never be more.

        Waits up to `timeout_s` seconds for some.
        """
        attempt = self._attempts[attempt_id]
        with GrowthWatch(attempt.log_path) as growth:
            ended = asyncio.ensure_future(attempt.finished.wait())
            ended.add_done_callback(lambda _: growth.wake())
            try:
                deadline = time.monotonic() + timeout_s
                while True:
                    complete = attempt.finished.is_set()
                    data = read_at(attempt.log_path, offset, max_bytes)
                    left_s = deadline - time.monotonic()
                    if data or complete or left_s <= 0:
                        return data, complete and not data
                    await growth.wait(left_s)
            finally:
                ended.cancel()

    async def abandon(self, attempt_id: str) -> None:
        """Kill what is left of an attempt of which the manager has lost hold."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None and attempt.writer is not None and not attempt.finished.is_set():
            order = {"op": "stop", "signal": int(signal.SIGKILL), "wait_s": 0}
            attempt.writer.write(json.dumps(order).encode() + b"\n")
            await attempt.finished.wait()
        await asyncio.to_thread(kill_marked, attempt_id)

    async def release(self, attempt_id: str) -> None:
        """Forget an attempt whose report the manager has recorded."""
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is not None:
            shutil.rmtree(attempt.directory, ignore_errors=True)

    # --- calls of Ray's own job server, when it comes back while our jobs run -----------------

    async def ping(self) -> None:
        """Answer, so that Ray's own job server sees that the job is supervised."""

    async def stop(self) -> None:
        """Stop what runs here."""
        for attempt in list(self._attempts.values()):
            self._send_stop(attempt)

    # --- inside -------------------------------------------------------------------------------

    def _accept(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleEpochError(f"Epoch {epoch} was replaced by {self._epoch}.")
        self._epoch = epoch

    def _attempt(self, order: dict[str, Any]) -> Attempt:
        attempt_id = order["attempt"]
        if attempt_id not in self._attempts:
            directory = os.path.join(work_dir(), "attempts", attempt_id)
            log_path = os.path.join(logs_dir(), order["log_name"])
            self._attempts[attempt_id] = Attempt(attempt_id, directory, log_path, order["stop_env"])
        return self._attempts[attempt_id]

    def _spawn_order(self, attempt: Attempt, order: dict[str, Any]) -> dict[str, Any]:
        os.makedirs(os.path.dirname(attempt.directory), 0o700, exist_ok=True)
        return {
            "attempt": attempt.attempt,
            "directory": attempt.directory,
            "argv": ["/bin/sh", "-c", order["entrypoint"]],
            "env": entrypoint_env(order),
            "cwd": os.getcwd(),
            "log_path": attempt.log_path,
            "log_header": order["log_header"],
            "niceness": 0,
        }

    async def _attach(self, attempt: Attempt) -> dict[str, Any]:
        """Connect to the keeper of a claimed attempt, or find how it ended."""
        deadline = time.monotonic() + KEEPER_START_TIMEOUT_S
        while True:
            try:
                reader, writer = await connect_unix(attempt.directory, CONTROL_SOCKET)
                line = await reader.readline()
                if line:
                    self._follow(attempt, json.loads(line), reader, writer)
                    return attempt.status
            except (FileNotFoundError, ConnectionError):
                logger.debug("No keeper answers for %s.", attempt.attempt)
            state = read_status(attempt.directory).get("state", "starting")
            # A keeper that has just claimed the attempt doesn't listen yet.
            if state != "starting" or time.monotonic() > deadline:
                break
            await asyncio.sleep(KEEPER_RETRY_S)
        attempt.status = await self._outcome_without_keeper(attempt)
        attempt.finished.set()
        attempt.task = asyncio.ensure_future(asyncio.sleep(0))
        return attempt.status

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

    async def _outcome_without_keeper(self, attempt: Attempt) -> dict[str, Any]:
        status = read_status(attempt.directory)
        if status.get("state") in ("exited", "failed_to_start", "lost"):
            return status
        await asyncio.to_thread(kill_marked, attempt.attempt)
        return {**status, "state": "lost", "error": "The job's keeper process was killed."}

    def _send_stop(self, attempt: Attempt) -> None:
        if attempt.writer is None or attempt.finished.is_set():
            return
        signum, wait_s = stop_settings(attempt.stop_env)
        order = {"op": "stop", "signal": signum, "wait_s": wait_s}
        attempt.writer.write(json.dumps(order).encode() + b"\n")
