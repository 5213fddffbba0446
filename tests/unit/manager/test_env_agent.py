"""Ray's agent that builds environments, through stand-ins for it and the GCS."""

from __future__ import annotations

import asyncio
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
        #: Environments that the agent was asked for; it installs nothing before it may.
        self.building = 0
        self.is_busy = asyncio.Event()
        self.may_install = asyncio.Event()
        self._row = SimpleNamespace(
            node_id=bytes.fromhex(NODE_ID),
            node_manager_address="127.0.0.1",
            runtime_env_agent_port=port,
        )

    def get_all_node_info(self, timeout: float) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop()
        return {NODE_ID: self._row}


async def close(agent: RuntimeEnvAgent) -> None:
    for session in agent._sessions.values():
        await session.close()


@pytest.fixture
async def gcs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gcs]:
    """With an agent that has released whatever it is told."""
    reply = messages.DeleteRuntimeEnvIfPossibleReply(status=messages.AGENT_RPC_STATUS_OK)

    async def release(request: web.Request) -> web.Response:
        return web.Response(body=reply.SerializeToString())

    built = messages.GetOrCreateRuntimeEnvReply(
        status=messages.AGENT_RPC_STATUS_OK, serialized_runtime_env_context="{}"
    )

    async def build(request: web.Request) -> web.Response:
        found.building += 1
        if found.building == 100:  # as many connections as there are
            found.is_busy.set()
        if b"pip" in await request.read():
            await found.may_install.wait()
        return web.Response(body=built.SerializeToString())

    app = web.Application()
    app.router.add_post("/delete_runtime_env_if_possible", release)
    app.router.add_post("/get_or_create_runtime_env", build)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found = Gcs(runner.addresses[0][1])
    context = SimpleNamespace(get_node_id=lambda: NODE_ID, get_job_id=lambda: "01000000")
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
    await close(agent)


async def test_other_trouble_of_ray_is_an_agent_that_cant_be_reached(gcs: Gcs) -> None:
    gcs.failures = [RaySystemError("odd")]
    agent = RuntimeEnvAgent()
    with pytest.raises(AgentUnreachable):
        await agent.release({"pip": ["x"]})
    await close(agent)


async def test_slow_builds_hold_up_nothing_else(gcs: Gcs) -> None:
    agent = RuntimeEnvAgent()
    many = asyncio.gather(*(agent.build({"pip": [f"x=={n}"]}, []) for n in range(150)))
    await gcs.is_busy.wait()
    await agent.build({"working_dir": "gcs://a.zip"}, [])
    await agent.release({"pip": ["x==1"]})
    assert not many.done()
    gcs.may_install.set()
    assert await many == [{}] * 150
    await close(agent)
