"""A job's log file on this node. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os

from ray_jobs.keeper.files import open_own, open_to_write
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
    fd = _opened(path)
    if fd is None:
        return b""
    with open(fd, "rb") as file:
        file.seek(offset)
        return file.read(max_bytes)


def read_kept_at(path: str, offset: int, max_bytes: int) -> tuple[int, bytes]:
    """Return how many bytes of a bounded log are missing at an offset, and what follows."""
    fd = _opened(path)
    if fd is None:
        return 0, b""
    with open(fd, "rb"):
        return read_kept(fd, offset, max_bytes)


def _opened(path: str) -> int | None:
    """Open a log for reading. Returns None if there is none, or something of another user's."""
    try:
        return open_own(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def drop_copied(path: str, copied: int) -> None:
    """Remove a log if the head has all of it, its first `copied` bytes. No-op if it can't be."""
    with contextlib.suppress(OSError):
        if os.path.getsize(path) <= copied:
            os.unlink(path)


def note_in_log(path: str, text: str) -> None:
    """Add the server's own words to a log. No-op where that can't be done."""
    with contextlib.suppress(OSError), open(open_to_write(path, os.O_APPEND), "ab") as file:
        file.write(f"[ray-jobs] {text}\n".encode())


def note_that_unbounded(path: str, error: OSError) -> None:
    """Tell the readers of a log why it isn't kept within its bound."""
    note_in_log(path, f"max_log_bytes has no effect: parts of this log can't be dropped ({error}).")


def last_lines(path: str) -> str:
    """Return the last lines of a log, for the message of a failed job; none if it can't be read."""
    try:
        size = os.path.getsize(path)
        data = read_at(path, max(0, size - TAIL_READ_BYTES), TAIL_READ_BYTES)
    except OSError:  # the end of its job is told all the same
        return ""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(lines[-TAIL_LINES:])[-TAIL_CHARS:]
