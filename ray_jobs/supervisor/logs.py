"""A job's log file on this node. Standard library only."""

from __future__ import annotations

import contextlib
import os

from ray_jobs.log_holes import read_kept

#: What a failed job's message holds of its log, as Ray has it.
TAIL_LINES = 10
TAIL_CHARS = 20_000
TAIL_READ_BYTES = 128 * 1024


def set_aside(path: str) -> str | None:
    """Rename the log of an earlier, deleted job with the same id: nothing is overwritten.

    Returns its new path, None if there is none.
    """
    with contextlib.suppress(FileNotFoundError):
        aside = f"{path}.{int(os.lstat(path).st_mtime * 1000)}"
        os.rename(path, aside)
        return aside
    return None


def read_at(path: str, offset: int, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(max_bytes)
    except FileNotFoundError:
        return b""


def read_kept_at(path: str, offset: int, max_bytes: int) -> tuple[int, bytes]:
    """Return how many bytes of a bounded log are missing at an offset, and what follows."""
    try:
        with open(path, "rb") as file:
            return read_kept(file.fileno(), offset, max_bytes)
    except FileNotFoundError:
        return 0, b""


def drop_copied(path: str, copied: int) -> None:
    """Remove a log if the head has all of it, its first `copied` bytes. No-op if it can't be."""
    with contextlib.suppress(OSError):
        if os.path.getsize(path) <= copied:
            os.unlink(path)


def note_in_log(path: str, text: str) -> None:
    """Add the server's own words to a log. No-op where that can't be done."""
    with contextlib.suppress(OSError), open(path, "ab") as file:
        file.write(f"[ray-jobs] {text}\n".encode())


def note_that_unbounded(path: str, error: OSError) -> None:
    """Tell the readers of a log why it isn't kept within its bound."""
    note_in_log(path, f"max_log_bytes has no effect: parts of this log can't be dropped ({error}).")


def last_lines(path: str) -> str:
    """Return the last lines of a log, for the message of a failed job."""
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        return ""
    data = read_at(path, max(0, size - TAIL_READ_BYTES), TAIL_READ_BYTES)
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(lines[-TAIL_LINES:])[-TAIL_CHARS:]
