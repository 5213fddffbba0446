"""An FTP server: the lightest remote file system that fsspec can write to."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

from tests.cluster import free_port
from tests.waiting import wait_until

USER, PASSWORD = "jobs", "a-password"
START_TIMEOUT_S = 20.0


class FtpServer:
    """A server of its own on a free port, which may be killed and started again. A context manager.

    Args:
        folder: What it shows as its root; made if there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.archive = folder / "archive"
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self._port}/{self.archive.name}"

    def start(self) -> None:
        """Start it. Returns once it answers."""
        self._folder.mkdir(exist_ok=True)
        options = f"-i 127.0.0.1 -p {self._port} -w -u {USER} -P {PASSWORD} -d {self._folder}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyftpdlib", *options.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, "the FTP server", START_TIMEOUT_S)

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self._port), 1) as connection,
        ):
            return connection.recv(3) == b"220"
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> FtpServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
