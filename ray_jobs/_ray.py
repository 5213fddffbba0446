"""Every use of Ray's private API on the server side (rule 9 of docs/architecture.md).

Each function says which public API is missing. Everything else sees plain Python. The module is
imported only in processes that have ray: the manager, the plugin's host, the gateway.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

from ray_jobs.manager.environments import AgentUnreachable, EnvironmentFailed

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

#: Seconds for which a package without a job that uses it is kept; Ray's variable for it.
_PIN_SECONDS_ENV_VAR = "RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S"
_PIN_SECONDS_DEFAULT = 600
#: How we are called where Ray counts who uses an environment.
_SOURCE_PROCESS = "ray_jobs"
_NODE_INFO_TIMEOUT_S = 30


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


def _gcs_client() -> Any:
    # Public API is missing: there is no async client of the internal KV.
    from ray._private.worker import global_worker

    return global_worker.gcs_client


class Kv:
    """The cluster's internal KV store, async. Public API is missing.

    No call has a timeout: while the GCS restarts they wait. Other failures raise Ray's `RpcError`.
    """

    def __init__(self, gcs_client: Any = None) -> None:
        self._client = gcs_client or _gcs_client()

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Write. Returns whether the key is new (put-if-absent with `overwrite=False`)."""
        added = await self._client.async_internal_kv_put(
            key.encode(), value, overwrite, namespace=namespace, timeout=None
        )
        return bool(added == 1)

    async def get(self, namespace: bytes | None, key: str) -> bytes | None:
        value: bytes | None = await self._client.async_internal_kv_get(
            key.encode(), namespace=namespace, timeout=None
        )
        return value

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        found = await self._client.async_internal_kv_multi_get(
            [key.encode() for key in keys], namespace=namespace, timeout=None
        )
        return {key.decode(): value for key, value in found.items()}

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        found = await self._client.async_internal_kv_keys(
            prefix.encode(), namespace=namespace, timeout=None
        )
        return [key.decode() for key in found]

    async def delete(self, namespace: bytes, key: str) -> None:
        await self._client.async_internal_kv_del(
            key.encode(), False, namespace=namespace, timeout=None
        )

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        return bool(
            await self._client.async_internal_kv_exists(
                key.encode(), namespace=namespace, timeout=None
            )
        )

    def put_package(self, uri: str, data: bytes) -> None:
        """Store a package where Ray's runtime environments look for it. Blocking.

        Holds the GIL for some 0.6 ms a MiB; the async call holds the event loop three times longer.
        """
        self._client.internal_kv_put(uri.encode(), data, True, namespace=None, timeout=None)

    def pin_package(self, uri: str, seconds: int | None = None) -> None:
        """Keep a package for a while though nothing of Ray's uses it. Blocking.

        For as long as Ray keeps one that was uploaded, unless `seconds` are given.
        """
        if seconds is None:
            seconds = int(os.environ.get(_PIN_SECONDS_ENV_VAR, _PIN_SECONDS_DEFAULT))
        if seconds > 0:
            self._client.pin_runtime_env_uri(uri, seconds)


def mirror_fields() -> frozenset[str]:
    """Return the fields that the installed Ray's own job record knows."""
    from ray.job_submission import JobInfo

    return frozenset(field.name for field in dataclasses.fields(JobInfo))


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
            ip, http_port, _ = json.loads(value)
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


def is_head_node() -> bool:
    """Return whether this process runs on the head node."""
    node_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            return "node:__internal_head__" in node["Resources"]
    return False


class RuntimeEnvAgent:
    """`environments.Agent`: Ray's agent on this node. Public API is missing."""

    def __init__(self) -> None:
        self._url = ""
        self._session: Any = None

    async def build(self, runtime_env: dict[str, Any], log_files: list[str]) -> dict[str, Any]:
        from ray.core.generated import runtime_env_agent_pb2 as messages

        env = RuntimeEnv(**runtime_env)
        config = RuntimeEnvConfig.parse_and_validate_runtime_env_config(env.get("config") or {})
        if log_files:
            config["log_files"] = log_files
        request = messages.GetOrCreateRuntimeEnvRequest(
            serialized_runtime_env=env.serialize(),
            runtime_env_config=config.build_proto_runtime_env_config(),
            job_id=ray.get_runtime_context().get_job_id().encode(),
            source_process=_SOURCE_PROCESS,
        )
        reply = messages.GetOrCreateRuntimeEnvReply()
        await self._post("/get_or_create_runtime_env", request, reply)
        if reply.status != messages.AGENT_RPC_STATUS_OK:
            # In the words of Ray's own exception for it.
            raise EnvironmentFailed(f"Failed to set up runtime environment.\n{reply.error_message}")
        context: dict[str, Any] = json.loads(reply.serialized_runtime_env_context)
        return context

    async def release(self, runtime_env: dict[str, Any]) -> None:
        from ray.core.generated import runtime_env_agent_pb2 as messages

        request = messages.DeleteRuntimeEnvIfPossibleRequest(
            serialized_runtime_env=RuntimeEnv(**runtime_env).serialize(),
            source_process=_SOURCE_PROCESS,
        )
        reply = messages.DeleteRuntimeEnvIfPossibleReply()
        await self._post("/delete_runtime_env_if_possible", request, reply)

    async def _post(self, path: str, request: Any, reply: Any) -> None:
        import aiohttp
        from google.protobuf.message import DecodeError
        from ray._private.authentication.http_token_authentication import (
            get_auth_headers_if_auth_enabled,
        )

        if self._session is None:
            # No time limit: the agent keeps the environment's own (`setup_timeout_seconds`).
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), trust_env=False
            )
        headers = {"Content-Type": "application/octet-stream"}
        headers.update(get_auth_headers_if_auth_enabled({}))
        try:
            url = self._url or await asyncio.to_thread(_runtime_env_agent_url)
            async with self._session.post(
                url + path, data=request.SerializeToString(), headers=headers
            ) as answer:
                if answer.status != 200:
                    raise AgentUnreachable(f"{path} answers {answer.status}.")
                reply.ParseFromString(await answer.read())
        except (aiohttp.ClientError, OSError, RuntimeError, DecodeError) as error:
            self._url = ""
            raise AgentUnreachable(f"{path}: {error}") from error
        self._url = url


def _runtime_env_agent_url() -> str:
    """Return the URL of this node's agent for runtime environments. Blocking."""
    node_id = ray.get_runtime_context().get_node_id()
    for row in _gcs_client().get_all_node_info(timeout=_NODE_INFO_TIMEOUT_S).values():
        if row.node_id.hex() == node_id:
            host = row.node_manager_address
            return f"http://{f'[{host}]' if ':' in host else host}:{row.runtime_env_agent_port}"
    raise RuntimeError(f"The GCS doesn't know node {node_id}.")


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


def is_token_auth_enabled() -> bool:
    """Return whether this cluster demands Ray's token. Public API is missing."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def is_valid_token_header(authorization: str) -> bool:
    """Return whether an `Authorization` header holds Ray's token. Public API is missing."""
    from ray._private.authentication.authentication_utils import validate_request_token

    return bool(validate_request_token(authorization))


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


@dataclasses.dataclass(frozen=True)
class DriverRow:
    """A row of the GCS's job table: one driver that connected to the cluster."""

    job_id: str
    namespace: str
    is_dead: bool
    entrypoint: str
    start_time_ms: int
    end_time_ms: int
    metadata: dict[str, str]
    runtime_env: dict[str, Any]
    node_ip_address: str
    pid: int


def _driver_row(entry: Any) -> DriverRow:
    serialized = entry.config.runtime_env_info.serialized_runtime_env
    return DriverRow(
        job_id=entry.job_id.hex(),
        namespace=entry.config.ray_namespace,
        is_dead=bool(entry.is_dead),
        entrypoint=entry.entrypoint,
        start_time_ms=entry.start_time,
        end_time_ms=entry.end_time,
        metadata=dict(entry.config.metadata),
        runtime_env=json.loads(serialized) if serialized else {},
        node_ip_address=entry.driver_address.ip_address,
        pid=entry.driver_pid,
    )


async def driver_rows(gcs_client: Any = None) -> list[DriverRow]:
    """Return the GCS's job table. Public API is missing."""
    client = gcs_client or _gcs_client()
    table = await client.async_get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=None
    )
    # In a thread: a long table isn't one step of the event loop.
    return await asyncio.to_thread(lambda: [_driver_row(entry) for entry in table.values()])


async def driver_updates(gcs_address: str) -> AsyncIterator[list[DriverRow]]:
    """Yield the rows of drivers as they come and go. The first batch is empty: subscribed.

    Public API is missing. Raises what gRPC raises when the GCS goes away.
    """
    from ray._private.gcs_pubsub import GcsAioJobSubscriber

    subscriber = GcsAioJobSubscriber(address=gcs_address)
    await subscriber.subscribe()
    try:
        yield []
        while True:
            messages = await subscriber.poll(batch_size=256)
            yield [_driver_row(entry) for _, entry in messages]
    finally:
        await subscriber.close()


async def head_node_id(kv: Kv) -> str | None:
    """Return the id of the head node. Public API is missing."""
    from ray._private import ray_constants

    value = await kv.get(_JOB_NAMESPACE, ray_constants.KV_HEAD_NODE_ID_KEY.decode())
    return value.decode() if value else None


def auth_headers() -> dict[str, str]:
    """Return the headers by which Ray's processes know each other. Public API is missing."""
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )

    headers: dict[str, str] = get_auth_headers_if_auth_enabled({})
    return headers


def put_package_from_outside(gcs_address: str, uri: str, data: bytes) -> None:
    """Store a package, in a process that isn't connected to the cluster. Blocking.

    Public API is missing.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    GcsClient(address=gcs_address).internal_kv_put(
        uri.encode(), data, True, namespace=None, timeout=None
    )
