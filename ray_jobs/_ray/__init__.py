"""Every use of Ray's private API on the server side (rule 9 of docs/architecture.md).

Each function says which public API is missing. Everything else sees plain Python. The module is
imported only in processes that have ray: the manager, the plugin's host, the gateway.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from typing import Any

import ray
from ray.runtime_env import RuntimeEnv

from ray_jobs._ray.actor_table import unborn_actors as unborn_actors
from ray_jobs._ray.env_agent import RuntimeEnvAgent as RuntimeEnvAgent
from ray_jobs._ray.env_agent import auth_headers as auth_headers
from ray_jobs._ray.gcs import Kv as Kv
from ray_jobs._ray.gcs import put_package_from_outside as put_package_from_outside
from ray_jobs._ray.job_table import DriverRow as DriverRow
from ray_jobs._ray.job_table import driver_rows as driver_rows
from ray_jobs._ray.job_table import driver_updates as driver_updates

logger = logging.getLogger(__name__)

#: Drivers in namespaces with this prefix are not shown as jobs and don't count as activity.
INTERNAL_NAMESPACE_PREFIX = "_ray_internal_"
#: Where the manager lives, and the drivers of plugin and gateway.
NAMESPACE = INTERNAL_NAMESPACE_PREFIX + "ray_jobs"
#: Ray's own job server looks for a job's supervisor under this namespace and name. Ours have the
#: same ones, so that Ray's server, when it comes back while our jobs run, finds them alive.
SUPERVISOR_NAMESPACE = "SUPERVISOR_ACTOR_RAY_NAMESPACE"
SUPERVISOR_NAME_PREFIX = "_ray_internal_job_actor_"
#: Supervisors of the pool live in `NAMESPACE`, under this name and a number of their own.
POOLED_SUPERVISOR_NAME_PREFIX = "ray_jobs_supervisor_"

_DASHBOARD_NAMESPACE = b"dashboard"
_JOB_NAMESPACE = b"job"
_AGENT_ADDRESS_KEY_PREFIX = "DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX:"


def connect(address: str) -> None:
    """Connect this process to the cluster at `address` as a driver that no list shows.

    Blocks for some 40 ms; call it off the event loop. Not from the main thread of Ray's dashboard:
    `ray.init` replaces the SIGTERM handler there. No-op if connected already.
    """
    if ray.is_initialized():
        return
    # Private: `_skip_env_hook`, so that a user's RAY_RUNTIME_ENV_HOOK isn't run for us.
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
        _skip_env_hook=True,
    )


def connect_in_thread(address: str) -> None:
    """`connect` from a thread of its own, and wait for it. Raises what it raises."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            connect(address)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="ray-jobs-connect")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def mirror_fields() -> frozenset[str]:
    """Return the fields that the installed Ray's own job record knows.

    The public `ray.job_submission` names it too, but imports a client with it, for 0.15 s of each
    start of a manager.
    """
    from ray.dashboard.modules.job.common import JobInfo

    return frozenset(field.name for field in dataclasses.fields(JobInfo))


def node_memory_bytes() -> float:
    """Return the memory of this node, or of its container. Public API is missing."""
    from ray._common.utils import get_system_memory

    return float(get_system_memory())


class AgentAddresses:
    """The URLs of the nodes' dashboard agents. Public API is missing."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._known: dict[str, str] = {}

    async def of(self, node_id: str) -> str | None:
        """Return the URL of a node's agent, or None. It stays the same as long as the node is."""
        if node_id not in self._known:
            value = await self._kv.get(_DASHBOARD_NAMESPACE, _AGENT_ADDRESS_KEY_PREFIX + node_id)
            if value is None:
                return None
            try:
                ip, http_port, _ = json.loads(value)
            except (ValueError, TypeError):
                logger.exception("The address of a node's agent can't be read.")
                return None
            host = f"[{ip}]" if ":" in ip else ip
            self._known[node_id] = f"http://{host}:{http_port}"
        return self._known[node_id]


async def dashboard_url(kv: Kv) -> str | None:
    """Return the URL of Ray's dashboard. Public API is missing."""
    from ray._private import ray_constants

    value = await kv.get(_DASHBOARD_NAMESPACE, ray_constants.DASHBOARD_ADDRESS)
    return f"http://{value.decode()}" if value else None


def logs_dir() -> str:
    """Return this node's log folder. Public API is missing."""
    from ray._private.worker import _global_node

    path: str = _global_node.get_logs_dir_path()
    return path


def session_dir() -> str:
    """Return this node's session folder. Public API is missing."""
    from ray._private.worker import _global_node

    path: str = _global_node.get_session_dir_path()
    return path


def session_name() -> str:
    """Return the name of the cluster's session. Public API is missing."""
    from ray._private.worker import _global_node

    name: str = _global_node.session_name
    return name


def raylet_pid() -> int | None:
    """Return the pid of this node's raylet, or None if it can't be told. Public API is missing."""
    import psutil

    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and any(
            session_dir() in word for word in process.info["cmdline"] or ()
        ):
            pid: int = process.pid
            return pid
    return None


def actor_id(handle: Any) -> str:
    """Return the id of an actor, as its own runtime context tells it. Public API is missing."""
    found: str = handle._actor_id.hex()
    return found


def is_head_node() -> bool:
    """Return whether this process runs on the head node."""
    node_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            return "node:__internal_head__" in node["Resources"]
    return False


def node_lives(node_id: str) -> bool:
    """Return whether a node is up, as far as is known: only the GCS's word counts. Blocking."""
    try:
        nodes = ray.nodes()
    except ray.exceptions.RayError:
        logger.exception("The GCS doesn't tell which nodes are up.")
        return True
    return any(node["NodeID"] == node_id and node["Alive"] for node in nodes)


def normalised_runtime_env(runtime_env: dict[str, Any]) -> dict[str, Any]:
    """Return a runtime environment as Ray would run it.

    Raises TypeError or ValueError for one that Ray refuses, paths of the client's machine included.
    """
    # Private: the check that nothing local is left. The public class accepts local paths.
    from ray.runtime_env.runtime_env import _validate_no_local_paths

    checked = RuntimeEnv(**runtime_env)
    _validate_no_local_paths(checked)
    result: dict[str, Any] = checked.to_dict()
    return result


def label_selector_error(selector: dict[str, str]) -> str | None:
    """Return what is wrong with a label selector, or None. Public API is missing."""
    from ray._private.label_utils import validate_label_selector

    error: str | None = validate_label_selector(selector)
    return error


def take_token_if_found() -> None:
    """Send Ray's token from now on if there is one and no mode is set, as `ray start` does.

    Public API is missing. No-op with a Ray that demands none then.
    """
    from ray._private.authentication import authentication_token_setup as setup

    take = getattr(setup, "maybe_enable_token_auth_if_token_available", None)
    if take is not None:
        take(warn_if_disabled=False)


def is_token_auth_enabled() -> bool:
    """Return whether this cluster demands Ray's token. Public API is missing."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def is_valid_token_header(authorization: str) -> bool:
    """Return whether an `Authorization` header holds Ray's token. Public API is missing."""
    from ray._private.authentication.authentication_utils import validate_request_token

    try:
        return bool(validate_request_token(authorization))
    except UnicodeError:  # bytes that are no UTF-8
        return False


def redacts_runtime_env() -> bool:
    """Return whether browsers are shown `env_vars` without values. Public API is missing."""
    from ray._private import ray_constants

    return bool(getattr(ray_constants, "RAY_DASHBOARD_REDACT_RUNTIME_ENV", True))


def stream_env_setup_log() -> bool:
    """Return whether the setup of a runtime environment is logged into the job's own log."""
    return os.environ.get("RAY_STREAM_RUNTIME_ENV_LOG_TO_JOB_DRIVER_LOG", "0") == "1"


#: Asked for when a job reserves nothing, so that the entrypoint sees the node's GPUs as they are.
KEEP_GPU_VARIABLES = {
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES": "1",
}
#: Ray's workers are niced; a job must not be, and a child that isn't root can't undo it.
NICENESS_VARIABLE = "RAY_worker_niceness"


def internal_env_vars() -> list[str]:
    """Return the environment variables of a worker that a job must not inherit."""
    from ray._private import ray_constants

    flags = list(getattr(ray_constants, "RAY_INTERNAL_FLAGS", ["RAY_JOB_ID", "RAY_RAYLET_PID"]))
    return [*flags, NICENESS_VARIABLE]


async def head_node_id(kv: Kv) -> str | None:
    """Return the id of the head node. Public API is missing."""
    from ray._private import ray_constants

    value = await kv.get(_JOB_NAMESPACE, ray_constants.KV_HEAD_NODE_ID_KEY.decode())
    return value.decode() if value else None
