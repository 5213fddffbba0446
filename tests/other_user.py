"""What another user of the machine may do, for root or who may become it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

UID = 65534  # nobody's
_LISTEN = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
os.chdir(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[3])
os.chmod(sys.argv[3], 0o777)
listener.listen()
print("listening", flush=True)
print(listener.accept()[0].recv(100).decode(), flush=True)
"""


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Have a folder of this user's to which all may write, without a sticky bit: as Ray's are."""
    folder = Path(tempfile.mkdtemp(prefix="open", dir="/tmp"))  # others must reach it
    try:
        folder.chmod(0o777)
        yield folder
    finally:
        _as_root("chown", "-Rh", str(os.geteuid()), str(folder))
        shutil.rmtree(folder)


def give_away(path: Path) -> None:
    """Make a file, a folder or a link the other user's."""
    _as_root("chown", "-h", str(UID), str(path))


@contextlib.contextmanager
def listening(folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """Have the other user listen on a socket, and print what the first one to connect says."""
    command = [sys.executable, "-I", "-S", "-c", _LISTEN, str(UID), str(folder), name]
    with subprocess.Popen(_root_command(*command), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()


def _as_root(*command: str) -> None:
    subprocess.run(_root_command(*command), check=True)


def _root_command(*command: str) -> list[str]:
    return [*command] if os.geteuid() == 0 else ["sudo", "-n", *command]
