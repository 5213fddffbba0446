"""Servers that are no part of the product, each in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tests.cluster import free_port
from tests.waiting import wait_until

START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 1.0
D = TypeVar("D", bound="Daemon")


class Daemon:
    """A server on a port of this machine, which may be killed and started again. A context manager.

    Args:
        folder: Where its output goes; made if there is none.
    """

    #: Of its log, and for who waits in vain.
    name: str
    #: What it is asked when one connects, if anything, and how its answer begins once it serves.
    question: bytes = b""
    answer: bytes

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """Return the command that serves on the port until it is killed."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, with the data that it had. Returns once it serves them."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{self.name}.out").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, self.name, START_TIMEOUT_S)

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), ANSWER_TIMEOUT_S) as connection,
        ):
            connection.sendall(self.question)
            return connection.recv(len(self.answer)) == self.answer
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self: D) -> D:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
