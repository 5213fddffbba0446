"""The audit: who changed or tried to change what, when, and with what outcome; a line of JSON each.

A request costs a line in memory. A thread writes what has gathered, so that a slow disk holds up
nobody, and a disk that is full fails no request: what is lost is counted, and told.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from ray_jobs.keeper.files import open_own

logger = logging.getLogger(__name__)

#: How long a line waits for others, in seconds.
GATHER_S = 0.05
#: Lines that wait for a disk that doesn't take them.
MAX_WAITING = 10_000
#: Of an id, a user agent or anything else in a line that a client chooses.
MAX_TEXT_CHARACTERS = 255

#: Fields of an entry that a client may choose.
_OF_CLIENTS = ("job_id", "package", "token", "address", "proxy", "user_agent")

_encode = msgspec.json.Encoder().encode


class Moment(NamedTuple):
    """A moment on two clocks: the wall clock may be set, so it doesn't tell what took how long."""

    wall_s: float  #: since epoch
    steady_s: float  #: of `time.monotonic`

    @classmethod
    def now(cls) -> Moment:
        return cls(time.time(), time.monotonic())

    def elapsed_ms(self) -> float:
        """Return how long ago it was."""
        return round((time.monotonic() - self.steady_s) * 1000, 1)


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line. Nothing in it comes from a body or a query: there are secrets in those."""

    time: str  #: ISO 8601, UTC
    time_ms: int  #: since epoch
    server: str  #: "dashboard" or "gateway"
    action: str  #: the name of the route: "submit_job"
    method: str
    job_id: str | None = None
    package: str | None = None
    token: str | None = None  #: the name in the token; None where none is demanded
    address: str = ""  #: the client's
    proxy: str | None = None  #: the trusted proxy's that it came through
    user_agent: str | None = None
    outcome: str = ""  #: "done", "refused" or "failed"
    status: int | None = None  #: of HTTP; None if the client has gone
    reason: str | None = None  #: the code of a refusal: "foreign_host"
    duration_ms: float = 0.0

    def __post_init__(self) -> None:
        """Have a line of whatever a client sends: headers and paths may hold any bytes."""
        for name in _OF_CLIENTS:
            text = getattr(self, name)
            if text:
                text = text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()
                setattr(self, name, text)


def times(seconds: float) -> tuple[str, int]:
    """Return a time since epoch in ISO 8601 and in ms."""
    time_ms = round(seconds * 1000)
    moment = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"), time_ms


class AuditFile:
    """A file of lines, replaced by a new one when it is full. Blocking; for one thread.

    Several processes may append to one path: who finds the file too long replaces it, and the
    others go on in the new one.

    Args:
        max_bytes: Of one file.
        files: How many are kept, the current one included.
    """

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = max(1, files)
        self._fd: int | None = None

    def write(self, data: bytes) -> None:
        """Append lines, all of them or none. Raises OSError."""
        fd = self._current()
        size = os.fstat(fd).st_size
        if size and size + len(data) > self._max_bytes:
            fd = self._rotate()
            size = os.fstat(fd).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(fd, data[written:])
        except OSError:
            # Half a line, on a disk that is full, would spoil the next one.
            if os.fstat(fd).st_size == size + written:  # nobody else has written meanwhile
                os.ftruncate(fd, size)
            raise

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _current(self) -> int:
        """Return the file that is at the path now: others may have replaced it."""
        if self._fd is not None and not self._is_at_path(self._fd):
            self.close()
        if self._fd is None:
            self._fd = self._open()
        return self._fd

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            return open_own(self._path, flags)
        except PermissionError:
            # Another user's, or no file: Ray's folders are open to all. It goes out of the way.
            with contextlib.suppress(OSError):
                os.replace(self._path, f"{self._path}.foreign")
            return open_own(self._path, flags)

    def _rotate(self) -> int:
        self.close()
        for number in range(self._files - 1, 0, -1):
            older = f"{self._path}.{number}"
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        if self._files == 1:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._fd = self._open()
        return self._fd


def refusals_path(path: str) -> str:
    """Return where the refused requests are told, given where the others are."""
    root, extension = os.path.splitext(path)
    return f"{root}-refused{extension}"


class Audit:
    """Writes entries to a file, or nowhere."""

    def __init__(self, file: AuditFile | None) -> None:
        self._file = file
        self._waiting: list[bytes] = []
        self._lost = 0
        self._writing: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray-jobs-audit") if file else None

    def add(self, entry: Entry) -> None:
        """Write an entry, soon."""
        if self._thread is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self._waiting.append(_encode(entry))
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())

    async def close(self) -> None:
        """Write what waits, and end the thread. No-op the second time."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if self._thread is not None and self._file is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
            self._thread.shutdown(wait=False)
            self._thread = None

    async def _write(self) -> None:
        assert self._thread is not None
        assert self._file is not None
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await asyncio.sleep(GATHER_S)
                lines, self._waiting = self._waiting, []
                lost, self._lost = self._lost, 0
                try:
                    data = b"\n".join(lines) + b"\n"
                    await loop.run_in_executor(self._thread, self._file.write, data)
                except OSError as error:
                    logger.error("The audit can't be written; %d lines lost: %s", len(lines), error)
                if lost:
                    logger.error("The audit was too slow: %d lines lost.", lost)
        finally:
            self._writing = None
