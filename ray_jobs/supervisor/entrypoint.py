"""How an entrypoint is started and stopped: its command, its environment, its signals."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from typing import Any

import ray

from ray_jobs.keeper.clock import read_boot_id
from ray_jobs.keeper.processes import oom_score
from ray_jobs.supervisor.node import raylet_pid

logger = logging.getLogger(__name__)

#: Marks the processes of an attempt, so that they are found when keeper and zygote were killed.
ATTEMPT_ENV_VAR = "RAY_JOBS_ATTEMPT"
STOP_SIGNALS = ("SIGTERM", "SIGINT")
DEFAULT_STOP_WAIT_S = 3
MAX_STOP_WAIT_S = 10 * 365 * 24 * 3600
#: What a kernel takes at most of one variable, in bytes, and of a whole environment.
MAX_VARIABLE_CHARS = 128 * 1024
MAX_ENV_VARS_CHARS = 6 * 1024 * 1024
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
_UNSET_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")


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
        #: A worker's, as an entrypoint of Ray's own server has it.
        self.oom_score = oom_score()
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
    left = MAX_ENV_VARS_CHARS
    for name, value in order["env_vars"].items():
        try:
            env[name] = expanded(value, env, min(left, MAX_VARIABLE_CHARS))
        except TooLongError:
            raise TooLongError(
                f"The variable {name} of env_vars is too long once the values of those that it"
                f" names are put in: one may have {MAX_VARIABLE_CHARS:,} characters, all together"
                f" {MAX_ENV_VARS_CHARS:,}."
            ) from None
        left -= len(env[name])
    for name, value in order["default_env"].items():
        env.setdefault(name, value)
    env.update(order["env"])
    env["RAY_ADDRESS"] = surroundings.gcs_address
    env["PYTHONUNBUFFERED"] = "1"
    env[ATTEMPT_ENV_VAR] = order["attempt"]
    return env


class TooLongError(ValueError):
    """A variable that no process could be given, and that may not fit into memory."""


def expanded(value: str, env: dict[str, str], max_chars: int) -> str:
    """Return a value of `env_vars` with `$VAR` and `${VAR}` replaced.

    As Ray does it for a worker: a variable that isn't set stays as it is, but one in braces with
    a name in capitals is empty. Raises `TooLongError`.
    """
    left = max_chars

    def found(match: re.Match[str]) -> str:
        nonlocal left
        text = env.get(match[1] or match[2], match[0])
        left -= len(text)
        if left < 0:
            raise TooLongError
        return text

    value = _UNSET_VARIABLE.sub("", _VARIABLE.sub(found, value))
    if len(value) > max_chars:
        raise TooLongError
    return value


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
        # A job's own value may be a secret.
        logger.warning("RAY_JOB_STOP_SIGNAL is not one of %s: SIGTERM", STOP_SIGNALS)
        name = "SIGTERM"
    text = env.get("RAY_JOB_STOP_WAIT_TIME_S", str(DEFAULT_STOP_WAIT_S))
    try:
        wait_s = float(text)
        if not wait_s >= 0:  # NaN too
            raise ValueError(text)
        wait_s = min(wait_s, MAX_STOP_WAIT_S)
    except ValueError:
        logger.warning("RAY_JOB_STOP_WAIT_TIME_S is not a number: %s", DEFAULT_STOP_WAIT_S)
        wait_s = DEFAULT_STOP_WAIT_S
    return int(getattr(signal, name)), wait_s
