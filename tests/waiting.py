"""Waiting for what has no event of its own, bounded in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PAUSE_S = 0.01


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Return once a condition holds. Fails the test when it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(PAUSE_S)


def left_after(find: Callable[[], list[str]], timeout_s: float, pause_s: float) -> list[str]:
    """Return what there still is once nothing is found any more, or after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = find()
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(pause_s)


def wait_for_line(path: Path, line: str, timeout_s: float = 10.0) -> None:
    """Return once a file holds a line."""

    def is_there() -> bool:
        return path.exists() and line in path.read_text(errors="replace").splitlines()

    wait_until(is_there, f"{line!r} in {path}", timeout_s)
