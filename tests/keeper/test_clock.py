"""A keeper under a wall clock that is stepped by an hour while its job runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.keeper.clock import BOOT_ID, boot_ms, process_age_ms

from .conftest import Node, running_node

HOUR_S = 3600


def libfaketime() -> str:
    """Return the library that shows a process another wall clock (Debian's `libfaketime`)."""
    [path] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    return str(path)


class WallClock:
    """The wall clock that a node's processes see."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set it so far from the real time."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        os.replace(new, self._path)

    def env(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": libfaketime(),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name in older versions
        }


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path / "clock")


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory, clock: WallClock) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("n"), clock.env()) as node:
        yield node


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_job_takes_as_long_as_it_takes(node: Node, clock: WallClock, step_s: int) -> None:
    began = time.monotonic()
    os.mkfifo(node.folder / "gate")
    keeper_client, started = node.spawn(f"cat {node.folder}/gate")
    clock.step(step_s)
    (node.folder / "gate").write_text("")
    ended = keeper_client.read()
    longest_ms = (time.monotonic() - began) * 1000
    assert abs(started["started_at_ms"] / 1000 - time.time()) < HOUR_S / 2
    assert 0 <= ended["ended_at_ms"] - ended["started_at_ms"] <= longest_ms + 1
    assert ended["boot_id"] == BOOT_ID
    assert 0 <= boot_ms() - ended["ended_boot_ms"] <= longest_ms + 1


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_the_wait_of_a_stop_is_as_long_as_it_says(
    node: Node, clock: WallClock, step_s: int
) -> None:
    """It ends neither with the step, nor an hour late."""
    keeper_client, _ = node.spawn("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    node.wait_for_log("ready")
    wait_s = 1.0
    began = time.monotonic()
    keeper_client.send(op="stop", signal=int(signal.SIGTERM), wait_s=wait_s)
    clock.step(step_s)
    ended = keeper_client.read()
    assert ended["stopped"] is True
    assert wait_s <= time.monotonic() - began < wait_s + 5
    assert ended["ended_at_ms"] - ended["started_at_ms"] >= wait_s * 1000


def test_the_clock_really_is_another(node: Node, clock: WallClock) -> None:
    clock.step(HOUR_S)
    _, started = node.spawn("true")
    assert abs(started["started_at_ms"] / 1000 - (time.time() + HOUR_S)) < HOUR_S / 2


def test_age_of_a_process() -> None:
    began = time.monotonic()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        age_ms = process_age_ms(process.pid)
        # Starts of processes are known to a hundredth of a second.
        assert -10 <= age_ms <= (time.monotonic() - began) * 1000 + 10
        assert process_age_ms(1) > age_ms
    with pytest.raises(FileNotFoundError):
        process_age_ms(2**22 + 1)
