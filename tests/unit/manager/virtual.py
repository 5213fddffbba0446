"""Time that passes when nothing is left to do, for what a busy machine would make of real time."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.model.loop import VirtualLoop


def in_virtual_time(
    monkeypatch: pytest.MonkeyPatch,
    module: types.ModuleType,
    scenario: Callable[[], Coroutine[Any, Any, None]],
    limit_s: float,
    seed: int = 0,
) -> None:
    """Run a scenario, and a module's clock, in virtual time.

    Args:
        limit_s: By then the scenario has ended.
    """
    # It has what is used here of a loop.
    loop = VirtualLoop(random.Random(seed))  # type: ignore[abstract]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=loop.time))
    running = loop.create_task(scenario())
    loop.run_for(limit_s)
    running.result()
    loop.close()
