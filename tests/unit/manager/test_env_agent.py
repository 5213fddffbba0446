"""Ray's agent that builds environments, while the GCS doesn't tell where it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from aiohttp import web
from ray.core.generated import runtime_env_agent_pb2 as messages
from ray.exceptions import RaySystemError, RpcError

from ray_jobs._ray import env_agent
from ray_jobs._ray.env_agent import RuntimeEnvAgent
from ray_jobs.manager.environments import AgentUnreachable

NODE_ID = "ab" * 28


class Gcs:
    """Fails as `failures` has it, then knows where the agent is."""

    def __init__(self, port: int) -> None:
        self.failures: list[Exception] = []
        self._row = SimpleNamespace(
            node_id=bytes.fromhex(NODE_ID),
            node_manager_address="127.0.0.1",
            runtime_env_agent_port=port,
        )

    def get_all_node_info(self, timeout: float) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop()
        return {NODE_ID: self._row}


@pytest.fixture
async def gcs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gcs]:
    """With an agent that has released whatever it is told."""
    reply = messages.DeleteRuntimeEnvIfPossibleReply(status=messages.AGENT_RPC_STATUS_OK)

    async def release(request: web.Request) -> web.Response:
        return web.Response(body=reply.SerializeToString())

    app = web.Application()
    app.router.add_post("/delete_runtime_env_if_possible", release)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found = Gcs(runner.addresses[0][1])
    context = SimpleNamespace(get_node_id=lambda: NODE_ID)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(env_agent, "gcs_client", lambda: found)
    monkeypatch.setattr(env_agent, "auth_headers", dict)
    monkeypatch.setattr(env_agent, "_GCS_RETRY_S", 0.0)
    yield found
    await runner.cleanup()


async def test_gcs_that_is_away_is_waited_for(gcs: Gcs) -> None:
    gcs.failures = [RpcError("the GCS is away", rpc_code=4)] * 5
    agent = RuntimeEnvAgent()
    await agent.release({"pip": ["x"]})
    assert not gcs.failures
    await agent._session.close()


async def test_other_trouble_of_ray_is_an_agent_that_cant_be_reached(gcs: Gcs) -> None:
    gcs.failures = [RaySystemError("odd")]
    agent = RuntimeEnvAgent()
    with pytest.raises(AgentUnreachable):
        await agent.release({"pip": ["x"]})
    await agent._session.close()
