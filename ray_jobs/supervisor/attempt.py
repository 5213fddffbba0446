"""What a supervisor knows of one attempt to run a job. Standard library only."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class Attempt:
    """One run of one job's entrypoint.

    Args:
        directory: By which a keeper claims it.
    """

    def __init__(self, attempt_id: str, directory: str) -> None:
        self.id = attempt_id
        self.directory = directory
        self.status: dict[str, Any] = {"state": "starting"}
        #: Set with the order to start or adopt it, which tells these two.
        self.known = asyncio.Event()
        self.log_path = ""
        #: Bytes that the log may have, if it is bounded. Nothing is dropped from `copied` on: the
        #: head has its copy up to there. None where the head needs none.
        self.max_log_bytes: int | None = None
        self.copied: int | None = None
        #: The log is removed here once the head has all of it and the end has been recorded.
        self.drops_log = False
        self.stop_env: dict[str, str] = {}
        #: A stop may come before the entrypoint has been started.
        self.stop_requested = False
        #: Starting and adopting take turns: each may be asked for twice.
        self.lock = asyncio.Lock()
        self.finished = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None
        self.task: asyncio.Task[None] | None = None
        self.bounding: asyncio.Task[None] | None = None

    def order_stop(self, signum: int, wait_s: float) -> bool:
        """Have the keeper stop it. Returns whether there is one, and it hasn't ended."""
        if self.writer is None or self.finished.is_set():
            return False
        order = {"op": "stop", "signal": signum, "wait_s": wait_s}
        self.writer.write(json.dumps(order).encode() + b"\n")
        return True
