"""This node: its folders, its zygote, its environment, and the private Ray API of this side.

Ray's private API is used in the two functions that say so (rule 9): `ray_jobs/_ray` isn't
shipped to where a supervisor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import ray

from ray_jobs.keeper.clock import boot_ms, read_boot_id
from ray_jobs.keeper.files import KEEPER_LINK, STATUS_FILE, own_folder
from ray_jobs.keeper.processes import Process, ends_within, has_ended, identity_of
from ray_jobs.keeper.sockets import peer_is_trusted, short_path

logger = logging.getLogger(__name__)

#: What the link says of an attempt that no keeper may begin.
NOBODY = "nobody"
#: Written by the manager into the head's folder. A node that sees it shares the head's files, on
#: one machine or on a network disk, and its logs need no copy.
HEAD_TOKEN_FILE = "head-token"
CHANNEL_PREFIX = "supervisor-"
#: Marks the processes of an attempt, so that they are found when keeper and zygote were killed.
ATTEMPT_ENV_VAR = "RAY_JOBS_ATTEMPT"
STOP_SIGNALS = ("SIGTERM", "SIGINT")
DEFAULT_STOP_WAIT_S = 3
MAX_STOP_WAIT_S = 10 * 365 * 24 * 3600
ZYGOTE_START_TIMEOUT_S = 20.0
ZYGOTE_RETRY_S = 0.02
#: What the interpreter of the zygote needs of this environment, which may be a job's own.
ZYGOTE_ENV_VARS = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
_UNSET_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")


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


def attempt_path(attempt_id: str) -> str:
    """Return the folder by which a keeper of this node claims an attempt."""
    return os.path.join(work_dir(), "attempts", attempt_id)


def raylet_pid() -> int:
    """Return the pid of this node's raylet, which started this worker."""
    return int(os.environ.get("RAY_RAYLET_PID") or os.getppid())


def raylet_lives() -> bool:
    """Return whether this node's raylet runs, or can't be told not to."""
    try:
        return not ends_within(identity_of(raylet_pid()), 0)
    except ProcessLookupError:
        return False
    except OSError:  # the kernel can't tell
        return True


async def connect_unix(
    directory: str, name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a Unix socket whose path may be longer than an address takes (108 bytes).

    Raises OSError, `PermissionError` where another user listens.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory, name) as path:
            connection.connect(path)
        if not peer_is_trusted(connection):
            raise PermissionError(f"The socket {name} in {directory} is another user's.")
    except OSError:
        connection.close()
        raise
    connection.setblocking(False)
    return await asyncio.open_unix_connection(sock=connection)


async def connect_to_zygote(
    source: str,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to this node's zygote, starting it where there is none.

    Never returns once the node's raylet is gone: so is this process in a moment, as all of Ray's.
    """
    directory = work_dir()
    own_folder(directory)
    try:
        name = zygote_name(source)
    except ProcessLookupError:
        await asyncio.Event().wait()
    deadline = time.monotonic() + ZYGOTE_START_TIMEOUT_S
    while True:
        try:
            return await connect_unix(directory, name)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
        if not raylet_lives():
            await asyncio.Event().wait()
        try:
            await asyncio.get_running_loop().run_in_executor(
                None, start_zygote, source, directory, name
            )
        except subprocess.CalledProcessError as error:
            if error.returncode > 0 or time.monotonic() > deadline:
                # Its own words would be the whole program.
                reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise ZygoteError(
                    f"The node's zygote can't be started: {''.join(reason) or error.returncode}"
                ) from None
            continue  # it was killed
        except subprocess.TimeoutExpired:
            raise ZygoteError(
                f"The node's zygote doesn't start: nothing in {ZYGOTE_START_TIMEOUT_S:g} s."
            ) from None
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return await connect_unix(directory, name)
        # Another supervisor is about to start it; there is no event to wait for across
        # processes before its socket exists.
        await asyncio.sleep(ZYGOTE_RETRY_S)


class ZygoteError(RuntimeError):
    """No zygote can be started on this node."""


def zygote_name(source: str) -> str:
    """Return the name of the socket of this node's zygote.

    Raises ProcessLookupError once the node's raylet is gone.
    """
    # A container sees other files than its node: it needs a zygote of its own.
    namespace = os.stat("/proc/self/ns/mnt").st_ino
    # And one of another version, whose orders may differ, keeps what it has.
    version = hashlib.sha256(source.encode()).hexdigest()[:8]
    # Nodes may share the folder, on one machine or by a network disk.
    raylet, start = identity_of(raylet_pid())
    return f"zygote-{namespace}-{version}-{raylet}-{start}-{read_boot_id()[:8]}"


def start_zygote(source: str, directory: str, name: str) -> None:
    """Start this node's zygote and return once it listens. Blocking.

    Raises CalledProcessError if it can't be started, or is killed before it listens.
    """
    # The interpreter below a virtual environment: it must outlive the job's environment.
    python = getattr(sys, "_base_executable", None) or sys.executable
    subprocess.run(
        [python, "-I", "-S", "-c", source, directory, name, str(raylet_pid())],
        env={key: os.environ[key] for key in ZYGOTE_ENV_VARS if key in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        timeout=ZYGOTE_START_TIMEOUT_S,
    )


def entrypoint_argv(order: dict[str, Any]) -> list[str]:
    """Return the command that runs the entrypoint, in the environment that Ray built for it."""
    argv = ["/bin/sh", "-c", order["entrypoint"]]
    prefix = order["command_prefix"]
    if not prefix:
        return argv
    # What Ray puts before a worker's command, for bash: "cd DIR &&", "source ACTIVATE 1>&2 &&".
    bash = shutil.which("bash") or "/bin/bash"
    return [bash, "-c", " ".join([*prefix, 'exec "$0" "$@"']), *argv]


class Surroundings:
    """What doesn't change while a supervisor lives, looked at once: jobs start from it."""

    def __init__(self) -> None:
        #: As Ray gave it to this process, whatever else happens in here.
        self.environment = dict(os.environ)
        self.node_environment = node_environment()
        self.niceness = node_niceness()
        self.cwd = os.getcwd()
        self.gcs_address = str(ray.get_runtime_context().gcs_address)
        self.boot_id = read_boot_id()


def entrypoint_env(order: dict[str, Any], surroundings: Surroundings) -> dict[str, str]:
    """Return the environment of the entrypoint: this worker's, without what is the worker's own."""
    env = dict(surroundings.environment)
    for name in order["drop_env"]:
        env.pop(name, None)
    if not order["keeps_omp_num_threads"]:
        # Ray sets it to 1 in a worker without CPUs of its own; the job gets the node's setting.
        env.pop("OMP_NUM_THREADS", None)
        node_value = surroundings.node_environment.get("OMP_NUM_THREADS")
        if node_value is not None:
            env["OMP_NUM_THREADS"] = node_value
        elif order["num_cpus"]:
            env["OMP_NUM_THREADS"] = str(max(1, int(order["num_cpus"])))
    for name, value in order["env_vars"].items():
        env[name] = expanded(value, env)
    for name, value in order["default_env"].items():
        env.setdefault(name, value)
    env.update(order["env"])
    env["RAY_ADDRESS"] = surroundings.gcs_address
    env["PYTHONUNBUFFERED"] = "1"
    env[ATTEMPT_ENV_VAR] = order["attempt"]
    return env


def expanded(value: str, env: dict[str, str]) -> str:
    """Return a value of `env_vars` with `$VAR` and `${VAR}` replaced.

    As Ray does it for a worker: a variable that isn't set stays as it is, but one in braces with
    a name in capitals is empty.
    """
    value = _VARIABLE.sub(lambda match: env.get(match[1] or match[2], match[0]), value)
    return _UNSET_VARIABLE.sub("", value)


def node_environment() -> dict[str, str]:
    """Return the environment that this node was started with: the raylet's."""
    try:
        with open(f"/proc/{raylet_pid()}/environ", "rb") as file:
            items = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in items if b"=" in item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def node_niceness() -> int:
    """Return the niceness that this node was started with: Ray's workers are niced, jobs not."""
    try:
        return os.getpriority(os.PRIO_PROCESS, raylet_pid())
    except ProcessLookupError:
        return 0


def stop_settings(job_env: dict[str, str]) -> tuple[int, float]:
    """Return the stop signal and the seconds until SIGKILL: of `env_vars`, else of the node."""
    env = {**os.environ, **job_env}
    name = env.get("RAY_JOB_STOP_SIGNAL", "SIGTERM")
    if name not in STOP_SIGNALS:
        logger.warning("RAY_JOB_STOP_SIGNAL=%s is not one of %s: SIGTERM", name, STOP_SIGNALS)
        name = "SIGTERM"
    text = env.get("RAY_JOB_STOP_WAIT_TIME_S", str(DEFAULT_STOP_WAIT_S))
    try:
        wait_s = float(text)
        if not wait_s >= 0:  # NaN too
            raise ValueError(text)
        wait_s = min(wait_s, MAX_STOP_WAIT_S)
    except ValueError:
        logger.warning("RAY_JOB_STOP_WAIT_TIME_S=%s is not a number: %s", text, DEFAULT_STOP_WAIT_S)
        wait_s = DEFAULT_STOP_WAIT_S
    return int(getattr(signal, name)), wait_s


def attempt_dir(attempt_id: str) -> str:
    """Return the folder of an attempt, which need not be there; the one above it is made."""
    path = attempt_path(attempt_id)
    own_folder(work_dir())
    own_folder(os.path.dirname(path))
    return path


def claim(directory: str) -> bool:
    """Make an attempt's folder. Returns False if it is there: who makes it has the attempt."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        return False
    return True


def is_claimed(directory: str) -> bool:
    """Return whether an attempt was begun on this node, or never will be."""
    return os.path.isdir(directory)


def never_begins(directory: str) -> bool:
    """Return whether a claimed attempt hasn't been begun, and make sure then that it never is."""
    if read_status(directory):  # of an earlier version's keeper too, which makes no link
        return False
    link = os.path.join(directory, KEEPER_LINK)
    try:
        os.symlink(NOBODY, link)
    except FileExistsError:
        # A keeper starts nothing before there is a status.
        return os.readlink(link) == NOBODY or (
            keeper_is_gone(directory) and not read_status(directory)
        )
    return True


def keeper_of(directory: str) -> Process | None:
    """Return the keeper that has begun an attempt.

    None if there was none, or it is one of an earlier version's or of another boot's.
    """
    try:
        pid, start, *boot = os.readlink(os.path.join(directory, KEEPER_LINK)).split(" ")
    except (OSError, ValueError):  # ValueError: nobody
        return None
    return (int(pid), int(start)) if boot == [read_boot_id()] else None


def keeper_is_gone(directory: str) -> bool:
    """Return whether the keeper that has begun an attempt has ended."""
    keeper = keeper_of(directory)
    return keeper is None or has_ended(keeper)


def dated(status: dict[str, Any], boot_id: str) -> dict[str, Any]:
    """Return a status that tells how long ago its attempt ended, if that is known.

    Other machines' wall clocks may be other than this one's.
    """
    if not boot_id or status.get("boot_id") != boot_id:
        return status
    return {**status, "ended_ago_ms": max(0, boot_ms() - status["ended_boot_ms"])}


def end_by_sigterm() -> None:
    """Have SIGTERM end this process at once, as SIGKILL does.

    Ray's handler waits for the end of all calls, and one of ours never ends: who is called as an
    actor doesn't answer any more then, and lives on.
    """
    # Python's own function is for the main thread alone, which runs no code of an actor.
    ctypes.CDLL(None).signal(signal.SIGTERM, None)


def forget(directory: str) -> None:
    """Remove an attempt's folder. No-op if there is none."""
    shutil.rmtree(directory, ignore_errors=True)


def attempts_here() -> list[str]:
    """Return the attempts that have a folder on this node."""
    try:
        return os.listdir(os.path.dirname(attempt_path("any")))
    except FileNotFoundError:
        return []


def channel_name(actor_id: str) -> str:
    """Return the name, in `work_dir`, of the socket by which a supervisor is called."""
    return f"{CHANNEL_PREFIX}{actor_id}.sock"


def forget_channel(actor_id: str) -> None:
    """Remove the name of a supervisor's socket. No-op if there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(work_dir(), channel_name(actor_id)))


def forget_ended(attempt_ids: Iterable[str]) -> None:
    """Remove the folders of attempts that have ended, in place of a supervisor that is dead.

    Not those without an end: an order to start it may be on its way still.
    """
    for attempt_id in attempt_ids:
        directory = attempt_path(attempt_id)
        if tells_end(read_status(directory)):
            forget(directory)


def tells_end(status: dict[str, Any]) -> bool:
    return status.get("state") in ("exited", "failed_to_start", "lost")


def read_text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def read_status(directory: str) -> dict[str, Any]:
    try:
        with short_path(directory, STATUS_FILE) as path, open(path, "rb") as file:
            status: dict[str, Any] = json.loads(file.read())
    except (FileNotFoundError, PermissionError, ValueError):
        return {}
    return status
