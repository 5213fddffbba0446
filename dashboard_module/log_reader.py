"""Reading job logs: in pieces, in bounded memory, and without holding up the event loop."""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from typing import NamedTuple

import msgspec

from ray_jobs.log_files import open_log
from ray_jobs.log_holes import end_of_data, read_kept
from ray_jobs.models import CUT_OFF_NOTICE, LogNote, gap_notice

#: The largest frame that a tail sends, in bytes; stock clients take up to 4 MiB.
MAX_FRAME_BYTES = 64 * 1024
#: Read, decoded and escaped at once for the stock log route, off the event loop.
JSON_CHUNK_BYTES = 512 * 1024

#: Of any file.
LAST_OFFSET = 2**63 - 1
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Piece(NamedTuple):
    """What was read of a log."""

    dropped: int  #: So many bytes before `data` aren't there any more (`max_log_bytes`).
    data: bytes


class LogFile:
    """A job's log, which may not exist yet.

    Args:
        path: Where it is at first. None: it never will be.
        is_bounded: Its middle may be dropped (see `ray_jobs/log_holes.py`).
    """

    def __init__(self, path: str | None, threads: Executor, *, is_bounded: bool = False) -> None:
        self._path = path
        self._threads = threads
        self._is_bounded = is_bounded
        self._fd: int | None = None
        #: Device and number of the file, once it has been opened: another one isn't its sequel.
        self._identity: tuple[int, int] | None = None
        #: Its size when it was opened last, in bytes.
        self.seen_bytes = 0
        self._peeks = sys.platform == "linux"

    def open(self) -> bool:
        """Open the file unless it is. Returns False if there is none. Raises `OSError`.

        Closed and opened again, it is the same file, or none: its name may have got another one.
        """
        if self._fd is None and self._path is not None:
            self._fd = open_log(self._path)
            if self._fd is None:
                return False
            status = os.fstat(self._fd)
            identity = status.st_dev, status.st_ino
            if self._identity not in (None, identity):
                self.close()
                return False
            self._identity = identity
            self.seen_bytes = status.st_size
        return self._fd is not None

    @property
    def has_left(self) -> bool:
        """Whether there was such a file, and its name is another one's or nobody's now."""
        return self._identity is not None and not self.open()

    def close(self) -> None:
        """Close the file. No-op if it isn't open."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def size(self) -> int:
        """Return the size so far, in bytes."""
        return os.fstat(self._fd).st_size if self.open() and self._fd is not None else 0

    def end_of_kept(self, offset: int) -> int:
        """Return where the kept bytes end that are at an offset of an open, bounded log."""
        assert self._fd is not None
        return end_of_data(self._fd, offset)

    async def read(self, offset: int, size: int) -> Piece:
        """Return up to `size` bytes; none at the end, or while there is no file."""
        size = min(size, LAST_OFFSET - offset)  # no file goes on beyond, and the kernel refuses it
        if size <= 0 or not self.open() or self._fd is None:
            return Piece(0, b"")
        loop = asyncio.get_running_loop()
        if self._is_bounded:
            return Piece(
                *await loop.run_in_executor(self._threads, read_kept, self._fd, offset, size)
            )
        data = self._peek(self._fd, offset, size)
        if data is None:
            data = await loop.run_in_executor(self._threads, os.pread, self._fd, size, offset)
        return Piece(0, data)

    async def read_once(self, offset: int, size: int) -> Piece:
        """As `read`, and leave the file closed.

        So a tail costs its connection alone, and ten thousand that are woken at once no more.
        """
        try:
            return await self.read(offset, size)
        finally:
            self.close()

    async def json_pieces(self) -> AsyncIterator[bytes]:
        """Yield what the log holds by now as the inside of a JSON string.

        Invalid UTF-8 is replaced.
        """
        loop = asyncio.get_running_loop()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        end = self.size()
        offset = 0
        while offset < end:
            size = min(JSON_CHUNK_BYTES, end - offset)
            passed, piece = await loop.run_in_executor(
                self._threads, self._escaped, decoder, offset, size
            )
            if not passed:
                break  # it has become shorter
            offset += passed
            yield piece
        yield escaped(decoder.decode(b"", final=True))

    def _escaped(
        self, decoder: codecs.IncrementalDecoder, offset: int, size: int
    ) -> tuple[int, bytes]:
        """Return by how many bytes an offset moves on, and what to send for them."""
        assert self._fd is not None
        if not self._is_bounded:
            data = os.pread(self._fd, size, offset)
            return len(data), escaped(decoder.decode(data))
        dropped, data = read_kept(self._fd, offset, size)
        text = decoder.decode(b"", final=True) + gap_notice(dropped) if dropped else ""
        return dropped + len(data), escaped(text + decoder.decode(data))

    def _peek(self, fd: int, offset: int, size: int) -> bytes | None:
        """Return what is in the page cache, None if that isn't known without waiting."""
        if sys.platform != "linux" or not self._peeks:
            return None
        buffer = bytearray(size)
        try:
            count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            self._peeks = False
            return None
        return bytes(memoryview(buffer)[:count])


def escaped(text: str) -> bytes:
    """Return text as it stands inside a JSON string."""
    return msgspec.json.encode(text)[1:-1]


class TextFrames:
    """Cuts the bytes of a log into texts, each of at most `MAX_FRAME_BYTES` when encoded.

    Invalid UTF-8 is replaced; a character that is cut off waits for its rest.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> Iterator[str]:
        return _cut(self._decoder.decode(data))

    def gap(self, dropped: int) -> Iterator[str]:
        """Tell of bytes that aren't there any more."""
        return _cut(self._decoder.decode(b"", final=True) + gap_notice(dropped))

    def end(self, *, is_cut_off: bool) -> Iterator[str]:
        """Give what is left. Of a log that may be cut off, tell so."""
        notice = CUT_OFF_NOTICE if is_cut_off else ""
        return _cut(self._decoder.decode(b"", final=True) + notice)


class ByteFrames:
    """Passes the bytes of a log on as they are. Of missing ones tell frames of text."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        return iter((data,) if data else ())

    def gap(self, dropped: int) -> Iterator[str]:
        """Tell of bytes that aren't there any more, in JSON."""
        return iter((msgspec.json.encode(LogNote(dropped=dropped)).decode(),))

    def end(self, *, is_cut_off: bool) -> Iterator[str]:
        """Of a log that may be cut off, tell so in JSON: no bytes, so offsets stay right."""
        return iter((msgspec.json.encode(LogNote(cut_off=True)).decode(),) if is_cut_off else ())


def _cut(text: str) -> Iterator[str]:
    encoded = text.encode()
    start = 0
    while start < len(encoded):
        end = min(start + MAX_FRAME_BYTES, len(encoded))
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1  # within a character
        yield encoded[start:end].decode()
        start = end
