"""Calls of supervisors: by their channels, and as actors."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayTaskError

from ray_jobs.channel import CallFailed
from ray_jobs.kv import Superseded
from ray_jobs.manager.calls import Supervisor
from ray_jobs.supervisor.actor import StaleEpochError


class FakeMethod:
    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    async def remote(self, *_: Any) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class FakeActor:
    def __init__(self, outcome: Any) -> None:
        self.adopt = FakeMethod(outcome)


class FakeChannel:
    """A channel that fails."""

    is_open = True

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def call(self, method: str, *_: Any) -> Any:
        raise self._error


@pytest.mark.parametrize("error", [ConnectionError("gone"), CallFailed("disk full")])
async def test_what_a_channel_cannot_do_the_actor_does(error: Exception) -> None:
    channel: Any = FakeChannel(error)
    assert await Supervisor(FakeActor("by Ray"), channel).call("adopt", 1, {}) == "by Ray"


async def test_a_supervisor_that_obeys_another_manager() -> None:
    stale = RayTaskError("adopt", "traceback", StaleEpochError("Epoch 1 was replaced by 2."))
    with pytest.raises(Superseded, match="replaced by 2"):
        await Supervisor(FakeActor(stale)).call("adopt", 1, {})


async def test_any_other_failure_of_a_call_is_rays() -> None:
    with pytest.raises(RayTaskError):
        await Supervisor(FakeActor(RayTaskError("adopt", "", ValueError("x")))).call("adopt", 1, {})
