"""Environments for supervisors that are alive already, with a stand-in for Ray's agent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ray_jobs.manager.environments import (
    BUILDS_AT_ONCE,
    AgentUnreachable,
    Built,
    EnvironmentFailed,
    Environments,
    NeedsOwnSupervisor,
    Pins,
    package_uris,
)
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord


class FakeAgent:
    def __init__(self) -> None:
        self.users = 0
        self.released = asyncio.Event()
        self.asked: list[dict[str, Any]] = []
        self.log_files: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failure: Exception | None = None

    async def build(self, runtime_env: dict[str, Any], log_files: list[str]) -> dict[str, Any]:
        self.log_files = log_files
        self.asked.append(runtime_env)
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        self.users += 1
        return {"env_vars": {"PYTHONPATH": "/there"}, "command_prefix": ["cd", "/there", "&&"]}

    async def release(self, runtime_env: dict[str, Any]) -> None:
        if self.failure is not None:
            raise self.failure
        self.users -= 1
        self.released.set()


@pytest.fixture
async def agent() -> FakeAgent:
    return FakeAgent()


def record(runtime_env: dict[str, Any] | None) -> JobRecord:
    return JobRecord(
        submission_id="a", entrypoint="true", status=JobStatus.PENDING, runtime_env=runtime_env
    )


@pytest.mark.parametrize(
    ("runtime_env", "env_vars"),
    [
        (None, {}),
        ({}, {}),
        ({"env_vars": {"A": "1"}, "config": {"eager_install": True}}, {"A": "1"}),
        ({"worker_process_setup_hook": "of.workers", "_ray_commit": "1"}, {}),
        ({"pip": None, "working_dir": ""}, {}),
    ],
)
async def test_nothing_to_build(
    agent: FakeAgent, runtime_env: dict[str, Any] | None, env_vars: dict[str, str]
) -> None:
    built = await Environments(agent, streams_log=False).build(record(runtime_env), "/log")
    assert built == Built(env_vars, [])
    assert agent.users == 0


@pytest.mark.parametrize("field", ["working_dir", "py_modules", "pip", "uv", "conda"])
@pytest.mark.parametrize("streams_log", [True, False])
async def test_built_by_the_agent(agent: FakeAgent, field: str, streams_log: bool) -> None:
    environments = Environments(agent, streams_log=streams_log)
    built = await environments.build(record({field: "x"}), "/log")
    assert built == Built({"PYTHONPATH": "/there"}, ["cd", "/there", "&&"], is_held=True)
    assert agent.users == 1
    assert agent.log_files == (["/log"] if streams_log else [])
    await environments.release({field: "x"})
    assert agent.users == 0


@pytest.mark.parametrize("field", ["container", "image_uri", "py_executable", "nsight", "plugin"])
async def test_only_with_a_worker_in_it(agent: FakeAgent, field: str) -> None:
    with pytest.raises(NeedsOwnSupervisor):
        await Environments(agent, streams_log=False).build(record({field: "x"}), "/log")


async def test_failures(agent: FakeAgent) -> None:
    environments = Environments(agent, streams_log=False)
    agent.failure = EnvironmentFailed("no such package")
    with pytest.raises(EnvironmentFailed, match="no such package"):
        await environments.build(record({"pip": ["x"]}), "/log")
    agent.failure = AgentUnreachable("404")
    with pytest.raises(NeedsOwnSupervisor):
        await environments.build(record({"pip": ["x"]}), "/log")
    await environments.release({"pip": ["x"]})


async def begun(
    environments: Environments, envs: list[dict[str, Any]]
) -> list[asyncio.Future[Built]]:
    """Return builds, each of which has come as far as it can."""
    builds: list[asyncio.Future[Built]] = [
        asyncio.ensure_future(environments.build(record(env), "/log")) for env in envs
    ]
    await asyncio.sleep(0.01)
    return builds


async def test_the_agent_is_asked_for_few_that_install_the_same(agent: FakeAgent) -> None:
    """Jobs of a sweep: each would hold a connection for as long as the installation takes."""
    environments = Environments(agent, streams_log=False)
    agent.may_answer.clear()
    sweep: list[dict[str, Any]] = [
        {"pip": ["x"], "env_vars": {"SEED": str(n)}, "working_dir": n * "a"}
        for n in range(BUILDS_AT_ONCE + 3)
    ]
    first, *others, other = await begun(environments, [*sweep, {"pip": ["y"]}])
    assert agent.asked == [*sweep[:BUILDS_AT_ONCE], {"pip": ["y"]}]
    stopped = others.pop()
    for each in (first, stopped):  # what the first one asked for is built all the same
        each.cancel()
    agent.may_answer.set()
    await asyncio.gather(other, *others)
    assert len(agent.asked) == len(sweep)
    await asyncio.wait([first, stopped])
    assert not environments._building
    await agent.released.wait()  # the first one's
    assert agent.users == len(sweep) - 1


async def test_installations_that_fail_are_tried_by_few_at_once(agent: FakeAgent) -> None:
    environments = Environments(agent, streams_log=False)
    agent.failure = EnvironmentFailed("no such package")
    agent.may_answer.clear()
    builds = await begun(environments, [{"pip": ["x"]}] * 3 * BUILDS_AT_ONCE)
    for count in (1, 2, 3):
        assert len(agent.asked) == count * BUILDS_AT_ONCE
        agent.may_answer.set()
        await asyncio.sleep(0)
        agent.may_answer.clear()
        await asyncio.sleep(0.01)
    results = await asyncio.gather(*builds, return_exceptions=True)
    assert [type(each) for each in results] == [EnvironmentFailed] * len(builds)


async def test_quick_ones_that_fail_do_so_soon(agent: FakeAgent) -> None:
    """Code that can't be fetched: the rest is asked for once one of them has its answer."""
    environments = Environments(agent, streams_log=False)
    agent.failure = EnvironmentFailed("404")
    agent.may_answer.clear()
    builds = await begun(environments, [{"working_dir": "https://h/a.zip"}] * 3 * BUILDS_AT_ONCE)
    assert len(agent.asked) == BUILDS_AT_ONCE
    agent.may_answer.set()
    await asyncio.sleep(0)
    agent.may_answer.clear()
    await asyncio.sleep(0.01)
    assert len(agent.asked) == len(builds)
    agent.may_answer.set()
    results = await asyncio.gather(*builds, return_exceptions=True)
    assert [type(each) for each in results] == [EnvironmentFailed] * len(builds)


async def test_interrupted_build_is_let_go_once_it_is_done(agent: FakeAgent) -> None:
    agent.may_answer.clear()
    building = asyncio.ensure_future(
        Environments(agent, streams_log=False).build(record({"pip": ["x"]}), "/log")
    )
    await asyncio.sleep(0)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    agent.may_answer.set()
    await asyncio.wait_for(agent.released.wait(), 5)
    assert agent.users == 0


def test_packages_of_an_environment() -> None:
    env = {"working_dir": "gcs://a.zip", "py_modules": ["gcs://b.zip", "s3://c.zip", 1]}
    assert package_uris(env) == ["gcs://a.zip", "gcs://b.zip"]
    assert package_uris({"working_dir": "https://a.zip", "py_modules": None}) == []
    assert package_uris(None) == []


async def test_pins_are_renewed_while_a_job_uses_them() -> None:
    pinned: list[str] = []
    renewed = asyncio.Event()

    async def pin(uri: str) -> None:
        pinned.append(uri)
        if len(pinned) == 3:
            renewed.set()

    pins = Pins(pin, lasts_s=0.05)
    await pins.hold(["gcs://a"])
    await pins.hold(["gcs://a"])
    assert pinned == ["gcs://a"]
    pins.drop(["gcs://a"])
    await asyncio.wait_for(renewed.wait(), 5)
    pins.drop(["gcs://a"])
    assert set(pinned) == {"gcs://a"}


async def test_failing_pin_does_not_fail_the_job() -> None:
    async def pin(_uri: str) -> None:
        raise OSError("GCS")

    pins = Pins(pin, lasts_s=600)
    await pins.hold(["gcs://a"])
    pins.drop(["gcs://a"])
