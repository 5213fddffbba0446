"""The JobSupervisor: the actor that has a job's entrypoint run on its node and tells how it ended.

Self-contained (rule 8): standard library, ray, and `ray_jobs.inotify`, both shipped by value, so
that it runs on nodes and in environments where ray_jobs isn't installed. It runs no user code
itself: a keeper does (see keeper.py), and lives on when the supervisor dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import ray

from ray_jobs.inotify import GrowthWatch

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
CONTROL_SOCKET = "control.sock"
#: Written by the manager into the head's folder. A node that sees it shares the head's files, on
#: one machine or on a network disk, and its logs need no copy.
HEAD_TOKEN_FILE = "head-token"
#: Marks every process of an attempt, so that they are found when their keeper was killed.
ATTEMPT_ENV_VAR = "RAY_JOBS_ATTEMPT"
STOP_SIGNALS = ("SIGTERM", "SIGINT")
DEFAULT_STOP_WAIT_S = 3
ZYGOTE_START_TIMEOUT_S = 20.0
ZYGOTE_RETRY_S = 0.02
#: What a failed job's message holds of its log, as Ray has it.
TAIL_LINES = 10
TAIL_CHARS = 20_000
TAIL_READ_BYTES = 128 * 1024
#: The node's own values of these are restored where Ray changed them for its worker.
ZYGOTE_ENV_VARS = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


class StaleEpochError(RuntimeError):
    """A manager that has been replaced gave an order."""


class Attempt:
    """One run of one job's entrypoint."""

    def __init__(self, attempt: str, directory: str, log_path: str) -> None:
        self.attempt = attempt
        self.directory = directory
        self.log_path = log_path
        self.status: dict[str, Any] = {"state": "starting"}
        self.finished = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.task: asyncio.Task[None] | None = None


class JobSupervisor:
    """Runs attempts on this node. Every call from the manager carries its epoch."""

    def __init__(self, keeper_source: str) -> None:
        self._keeper_source = keeper_source
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
        self._accept(epoch)
        attempt = self._attempt(order)
        if attempt.task is not None:
            return attempt.status
        if order["fresh_log"]:
            set_aside(attempt.log_path)
        reader, writer = await self._zygote()
        writer.write(json.dumps(self._spawn_order(attempt, order)).encode() + b"\n")
        line = await reader.readline()
        status = json.loads(line) if line else {"state": "lost", "error": "The zygote went away."}
        if status["state"] == "exists":
            writer.close()
            return await self._attach(attempt)
        self._follow(attempt, status, reader, writer)
        return status

    async def adopt(self, epoch: int, order: dict[str, Any]) -> dict[str, Any]:
        """Take over an attempt whose supervisor died. Returns its status.

        The status is `unknown` if the attempt was never started on this node.
        """
        self._accept(epoch)
        attempt = self._attempt(order)
        if attempt.task is not None:
            return attempt.status
        if not os.path.isdir(attempt.directory):
            return {"state": "unknown"}
        return await self._attach(attempt)

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
            self._attempts[attempt_id] = Attempt(attempt_id, directory, log_path)
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

    async def _zygote(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to this node's zygote, starting it where there is none."""
        directory = work_dir()
        os.makedirs(directory, 0o700, exist_ok=True)
        # A container sees other files than its node: it needs a zygote of its own.
        namespace = os.stat("/proc/self/ns/mnt").st_ino
        name = f"zygote-{namespace}"
        deadline = time.monotonic() + ZYGOTE_START_TIMEOUT_S
        while True:
            try:
                return await connect_unix(directory, name)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
            await asyncio.get_running_loop().run_in_executor(
                None, start_zygote, self._keeper_source, directory, name
            )
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return await connect_unix(directory, name)
            # Another supervisor is about to start it; there is no event to wait for across
            # processes before its socket exists.
            await asyncio.sleep(ZYGOTE_RETRY_S)

    async def _attach(self, attempt: Attempt) -> dict[str, Any]:
        """Connect to the keeper of a started attempt, or read how it ended."""
        try:
            reader, writer = await connect_unix(attempt.directory, CONTROL_SOCKET)
            status = json.loads(await reader.readline())
        except (FileNotFoundError, ConnectionError, ValueError):
            attempt.status = self._outcome_without_keeper(attempt)
            attempt.finished.set()
            attempt.task = asyncio.ensure_future(attempt.finished.wait())  # type: ignore[arg-type]
            return attempt.status
        self._follow(attempt, status, reader, writer)
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
            while attempt.status["state"] == "running":
                line = await reader.readline()
                if not line:
                    attempt.status = self._outcome_without_keeper(attempt)
                    break
                attempt.status = json.loads(line)
        except (ConnectionError, ValueError):
            attempt.status = self._outcome_without_keeper(attempt)
        finally:
            if attempt.writer is not None:
                attempt.writer.close()
            attempt.finished.set()

    def _outcome_without_keeper(self, attempt: Attempt) -> dict[str, Any]:
        status = read_status(attempt.directory)
        if status.get("state") in ("exited", "failed_to_start"):
            return status
        kill_marked(attempt.attempt)
        return {**status, "state": "lost", "error": "The job's keeper process was killed."}

    def _send_stop(self, attempt: Attempt) -> None:
        if attempt.writer is None or attempt.finished.is_set():
            return
        signum, wait_s = stop_settings()
        order = {"op": "stop", "signal": signum, "wait_s": wait_s}
        attempt.writer.write(json.dumps(order).encode() + b"\n")


# --- this node ------------------------------------------------------------------------------


def session_dir() -> str:
    """Return this node's session folder. Ray has no public API for it."""
    path: str = ray._private.worker._global_node.get_session_dir_path()
    return path


def logs_dir() -> str:
    """Return this node's log folder. Ray has no public API for it."""
    path: str = ray._private.worker._global_node.get_logs_dir_path()
    return path


def work_dir() -> str:
    """Return the folder of our sockets and status files on this node."""
    return os.path.join(session_dir(), "ray_jobs")


def raylet_pid() -> int:
    """Return the pid of this node's raylet, which started this worker."""
    return int(os.environ.get("RAY_RAYLET_PID") or os.getppid())


async def connect_unix(
    directory: str, name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a Unix socket whose path may be longer than an address takes (108 bytes)."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(folder)
    connection.setblocking(False)
    return await asyncio.open_unix_connection(sock=connection)


def start_zygote(source: str, directory: str, name: str) -> None:
    """Start this node's zygote and return once it listens. Blocking."""
    # The interpreter below a virtual environment: it must outlive the job's environment.
    python = getattr(sys, "_base_executable", None) or sys.executable
    subprocess.run(
        [python, "-I", "-S", "-c", source, directory, name, str(raylet_pid())],
        env={key: os.environ[key] for key in ZYGOTE_ENV_VARS if key in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=ZYGOTE_START_TIMEOUT_S,
    )


def entrypoint_env(order: dict[str, Any]) -> dict[str, str]:
    """Return the environment of the entrypoint: this worker's, without what is the worker's own."""
    env = dict(os.environ)
    for name in order["drop_env"]:
        env.pop(name, None)
    if not order["keeps_omp_num_threads"]:
        # Ray sets it to 1 in a worker without CPUs of its own; the job gets the node's setting.
        env.pop("OMP_NUM_THREADS", None)
        node_value = node_environment().get("OMP_NUM_THREADS")
        if node_value is not None:
            env["OMP_NUM_THREADS"] = node_value
        elif order["num_cpus"]:
            env["OMP_NUM_THREADS"] = str(max(1, int(order["num_cpus"])))
    for name, value in order["default_env"].items():
        env.setdefault(name, value)
    env.update(order["env"])
    env["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    env["PYTHONUNBUFFERED"] = "1"
    env[ATTEMPT_ENV_VAR] = order["attempt"]
    return env


def node_environment() -> dict[str, str]:
    """Return the environment that this node was started with: the raylet's."""
    try:
        with open(f"/proc/{raylet_pid()}/environ", "rb") as file:
            items = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in items if b"=" in item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def stop_settings() -> tuple[int, float]:
    """Return the stop signal and the seconds until SIGKILL: of `env_vars`, else of the node."""
    name = os.environ.get("RAY_JOB_STOP_SIGNAL", "SIGTERM")
    if name not in STOP_SIGNALS:
        logger.warning("RAY_JOB_STOP_SIGNAL=%s is not one of %s: SIGTERM", name, STOP_SIGNALS)
        name = "SIGTERM"
    text = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", str(DEFAULT_STOP_WAIT_S))
    try:
        wait_s = max(0.0, float(text))
    except ValueError:
        logger.warning("RAY_JOB_STOP_WAIT_TIME_S=%s is not a number: %s", text, DEFAULT_STOP_WAIT_S)
        wait_s = DEFAULT_STOP_WAIT_S
    return int(getattr(signal, name)), wait_s


def read_text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def read_status(directory: str) -> dict[str, Any]:
    try:
        with open(os.path.join(directory, STATUS_FILE), "rb") as file:
            status: dict[str, Any] = json.loads(file.read())
    except (FileNotFoundError, ValueError):
        return {}
    return status


def kill_marked(attempt: str) -> None:
    """Kill every process of an attempt whose keeper is gone."""
    marker = f"{ATTEMPT_ENV_VAR}={attempt}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/environ", "rb") as file:
                marked = marker in file.read().split(b"\0")
            if marked:
                os.kill(int(entry), signal.SIGKILL)


# --- log files ------------------------------------------------------------------------------


def set_aside(path: str) -> None:
    """Rename the log of an earlier, deleted job with the same id: nothing is overwritten."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, f"{path}.{int(os.stat(path).st_mtime * 1000)}")


def read_at(path: str, offset: int, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(max_bytes)
    except FileNotFoundError:
        return b""


def last_lines(path: str) -> str:
    """Return the last lines of a log, for the message of a failed job."""
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        return ""
    data = read_at(path, max(0, size - TAIL_READ_BYTES), TAIL_READ_BYTES)
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(lines[-TAIL_LINES:])[-TAIL_CHARS:]
