"""An FTP server: the lightest remote file system that fsspec can write to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.daemons import Daemon

USER, PASSWORD = "jobs", "a-password"


class FtpServer(Daemon):
    """A server that shows its folder as its root."""

    name = "ftp"
    answer = b"220"

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def url(self) -> str:
        return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{self.archive.name}"

    def command(self) -> Sequence[str]:
        options = f"-i 127.0.0.1 -p {self.port} -w -u {USER} -P {PASSWORD} -d {self.folder}"
        return [sys.executable, "-m", "pyftpdlib", *options.split()]
