"""Ray's agent on this node that builds runtime environments."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import ray
from ray.exceptions import RayError, RpcError
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

from ray_jobs._ray.gcs import gcs_client
from ray_jobs.manager.environments import (
    SLOW_FIELDS,
    AgentUnreachable,
    EnvironmentFailed,
    wanted_fields,
)

logger = logging.getLogger(__name__)

#: How we are called where Ray counts who uses an environment.
_SOURCE_PROCESS = "ray_jobs"
_NODE_INFO_TIMEOUT_S = 30
#: A GCS that is away is asked again after so long.
_GCS_RETRY_S = 1.0


def auth_headers() -> dict[str, str]:
    """Return the headers by which Ray's processes know each other. Public API is missing."""
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )

    headers: dict[str, str] = get_auth_headers_if_auth_enabled({})
    return headers


class RuntimeEnvAgent:
    """`environments.Agent`: Ray's agent on this node. Public API is missing."""

    def __init__(self) -> None:
        self._url = ""
        #: By what they are for, with connections of its own each: a hundred slow builds hold up
        #: neither a quick one nor a release.
        self._sessions: dict[str, Any] = {}

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
        session = "slow builds" if SLOW_FIELDS & wanted_fields(runtime_env) else "builds"
        await self._post(session, "/get_or_create_runtime_env", request, reply)
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
        await self._post("releases", "/delete_runtime_env_if_possible", request, reply)

    async def _post(self, session: str, path: str, request: Any, reply: Any) -> None:
        import aiohttp
        from google.protobuf.message import DecodeError

        if session not in self._sessions:
            # No time limit: the agent keeps the environment's own (`setup_timeout_seconds`).
            self._sessions[session] = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), trust_env=False
            )
        headers = {"Content-Type": "application/octet-stream"}
        headers.update(auth_headers())
        try:
            url = self._url or await _found_url()
            async with self._sessions[session].post(
                url + path, data=request.SerializeToString(), headers=headers
            ) as answer:
                if answer.status != 200:
                    raise AgentUnreachable(f"{path} answers {answer.status}.")
                reply.ParseFromString(await answer.read())
        except (aiohttp.ClientError, OSError, RuntimeError, DecodeError, RayError) as error:
            self._url = ""
            raise AgentUnreachable(f"{path}: {error}") from error
        self._url = url


async def _found_url() -> str:
    """Return the URL of this node's agent for runtime environments, once the GCS tells it."""
    while True:
        try:
            return await asyncio.to_thread(_runtime_env_agent_url)
        except RpcError as error:
            logger.warning("The GCS doesn't tell where Ray's runtime_env agent is: %s", error)
        # There is no event for a GCS that is back.
        await asyncio.sleep(_GCS_RETRY_S)


def _runtime_env_agent_url() -> str:
    """Return the URL of this node's agent for runtime environments. Blocking."""
    node_id = ray.get_runtime_context().get_node_id()
    for row in gcs_client().get_all_node_info(timeout=_NODE_INFO_TIMEOUT_S).values():
        if row.node_id.hex() == node_id:
            host = row.node_manager_address
            return f"http://{f'[{host}]' if ':' in host else host}:{row.runtime_env_agent_port}"
    raise RuntimeError(f"The GCS doesn't know node {node_id}.")
