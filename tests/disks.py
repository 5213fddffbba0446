"""Disks that are soon full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(path: Path, size_mib: int) -> Iterator[None]:
    """Have a disk of its own at a path, for root or who may become it."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    path.mkdir(exist_ok=True)
    options = f"size={size_mib}m,uid={os.geteuid()},mode=0755"
    subprocess.run([*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run([*as_root, "umount", "--lazy", path], check=True)
        path.rmdir()


def fill(folder: Path) -> None:
    """Take the last room: jobs that end give some back."""
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
