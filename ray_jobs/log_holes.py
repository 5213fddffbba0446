"""Keeping a log within bounds by punching a hole into it: its middle goes back to the disk.

The offsets of what is left stay as they are, nothing is copied, and the job writes on as ever.
Standard library only: shipped by value to supervisors. Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os

#: What a log begins with is kept: it often explains the job.
HEAD_BYTES = 64 * 1024
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_SMALLEST_BLOCK_BYTES = 4096


def trim(path: str, max_bytes: int, limit: int | None = None) -> None:
    """Drop the middle of a log that holds more than `max_bytes`.

    What is left then is a quarter smaller, so that it isn't done for every line. No-op if there is
    no such file.

    Args:
        limit: Nothing is dropped from this offset on.

    Raises:
        OSError: with `EOPNOTSUPP` for a file system that can't do it.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(fd)
        block = max(status.st_blksize, _SMALLEST_BLOCK_BYTES)
        start = -(-HEAD_BYTES // block) * block
        tail = start + dropped(fd, start)
        if start + status.st_size - tail <= max_bytes:
            return
        if start > max_bytes // 2:
            raise OSError(errno.EOPNOTSUPP, f"the blocks of {block} bytes are too large")
        kept = (max_bytes - start) * 3 // 4
        stop = status.st_size - kept if limit is None else min(limit, status.st_size - kept)
        stop -= stop % block  # the rest of a block would be zeros that look like the log
        if stop > tail:
            _punch(fd, start, stop - start)
    finally:
        os.close(fd)


def dropped(fd: int, offset: int) -> int:
    """Return how many bytes from an offset on aren't there any more."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) - offset
    except OSError as error:
        if error.errno != errno.ENXIO:  # at the end of the file
            raise
        return 0


def read_kept(fd: int, offset: int, size: int) -> tuple[int, bytes]:
    """Return how many bytes are missing at an offset, and up to `size` bytes of what follows.

    None follow at the end. Zeros in place of what is being dropped meanwhile are never returned.
    """
    while True:
        missing = dropped(fd, offset)
        start = offset + missing
        stop = end_of_data(fd, start)
        data = os.pread(fd, min(size, stop - start), start) if stop > start else b""
        if not data or (dropped(fd, start) == 0 and end_of_data(fd, start) >= start + len(data)):
            return missing, data


def end_of_data(fd: int, offset: int) -> int:
    """Return where the bytes end that are there at an offset."""
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return offset


def has_hole(fd: int) -> bool:
    """Return whether some of a file isn't there any more."""
    return end_of_data(fd, 0) < os.fstat(fd).st_size


def _punch(fd: int, start: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate64(fd, _PUNCH_HOLE | _KEEP_SIZE, start, size) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
