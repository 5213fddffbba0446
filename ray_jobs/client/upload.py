"""Sending packages: only those that the server doesn't have, and each of them once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Any, Literal

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter

from ray_jobs import errors
from ray_jobs.client import packaging
from ray_jobs.client.connection_errors import was_sent
from ray_jobs.client.packaging import Content, Package
from ray_jobs.client.transport import UPLOAD_READ_TIMEOUT_S, Transport, quoted
from ray_jobs.client.types import Progress

logger = logging.getLogger("ray_jobs")

OnProgress = Callable[[Progress], None]

#: Between two looks at a lock that another process holds.
LOCK_POLL_S = 0.1
#: Age in seconds from which on nobody holds a lock file any more.
OLD_LOCK_S = 24 * 3600.0
_CHUNK_BYTES = 256 * 1024


class _Stopped(Exception):
    """Nobody waits for this work any more."""


class _Work:
    """Runs blocking work in a thread, and tells of its progress; stops it when cancelled."""

    def __init__(self, content: Content, on_progress: OnProgress | None) -> None:
        self._path = str(content.package.path)
        self._on_progress = on_progress
        self._stop = threading.Event()

    def report(
        self, stage: Literal["hashing", "zipping", "uploading"], total: int
    ) -> Callable[[int], None]:
        def report(done: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            if self._on_progress is not None:
                # A file that grew meanwhile would bring the bar beyond its end.
                self._on_progress(Progress(stage, self._path, min(done, total), total))

        return report

    async def run(self, work: Callable[[], str]) -> str:
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stop.set()
            # It writes to a file that is closed after this.
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            raise


async def upload(
    transport: Transport, package: Package, limit: int, on_progress: OnProgress | None
) -> str:
    """See to it that the server has a package, and return its URI.

    Processes of this user that send the same package at the same time build and send it once.

    Args:
        limit: The largest package that the server takes, in bytes.

    Raises:
        InvalidRuntimeEnv: something can't be read.
        PackageTooLarge: it is over the limit. Nothing was sent.
    """
    content = await asyncio.to_thread(packaging.find_content, package)
    if package.kind == "file" and content.total_bytes > limit:
        raise packaging.too_large(content, content.total_bytes, limit)
    work = _Work(content, on_progress)
    total = content.total_bytes
    directory = await asyncio.to_thread(cache_directory)
    built = packaging.temporary_file(directory)
    with built:
        built_digest: str | None = None
        if package.kind != "file" and total > limit:
            # It may well be too large, and building it tells so before all of it is read.
            digest = built_digest = await work.run(
                lambda: packaging.build(content, built, limit, work.report("zipping", total))
            )
        else:
            digest = await work.run(
                lambda: packaging.digest_of(content, work.report("hashing", total))
            )
        uri = packaging.uri_of(package, digest)
        async with _locked(directory, transport.address.url, uri):
            if await _exists(transport, uri):
                logger.info("%s is on the server already, as %s.", package.path, uri)
                return uri
            if package.kind == "file":
                with package.path.open("rb") as file:
                    await _put(transport, uri, file, work)
                return uri
            if built_digest is None:
                built_digest = await work.run(
                    lambda: packaging.build(content, built, limit, work.report("zipping", total))
                )
                # Files changed since they were hashed: the name must tell what is in the package.
                uri = packaging.uri_of(package, built_digest)
            await _put(transport, uri, built, work)
        return uri


async def _exists(transport: Transport, uri: str) -> bool:
    """Return whether the server has a package. It then keeps it for some minutes."""
    answer = await transport.request("GET", _path(uri))
    if answer.status == 404:
        return False
    answer.check()
    return True


async def _put(transport: Transport, uri: str, file: IO[bytes], work: _Work) -> None:
    size = file.seek(0, os.SEEK_END)
    body = _FilePayload(file, size, work.report("uploading", size))
    logger.info("Uploading %s (%d bytes).", uri, size)
    try:
        answer = await transport.request(
            "PUT", _path(uri), data=body, read_timeout=UPLOAD_READ_TIMEOUT_S
        )
    except errors.RayJobsError as error:
        if body.failure is not None:
            # Ours: a callback's exception, or the file's. The connection broke off for it.
            raise body.failure from None
        if was_sent(error) and error.hint is None:
            error.hint = (
                f"The package has {size} bytes. A proxy with a limit on request bodies breaks the "
                "connection so (nginx: client_max_body_size)."
            )
        raise
    answer.check()


def _path(uri: str) -> str:
    protocol, name = uri.split("://", 1)
    return f"/api/packages/{protocol}/{quoted(name)}"


class _FilePayload(payload.Payload):
    """A request body from a file, read piece by piece off the loop; it can be sent again."""

    def __init__(self, file: IO[bytes], size: int, report: Callable[[int], None]) -> None:
        super().__init__(file, content_type="application/octet-stream")
        self._file = file
        self._size = size
        self._total = size
        self._report = report
        self.failure: Exception | None = None  #: What kept it from being sent whole.

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        raise TypeError("A package is no text.")

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.failure = None
        try:
            await self._write(writer)
        except (aiohttp.ClientError, asyncio.CancelledError):
            raise
        except Exception as error:
            # aiohttp would take it for the connection's.
            self.failure = error
            raise

    async def _write(self, writer: AbstractStreamWriter) -> None:
        self._file.seek(0)
        done = 0
        self._report(done)
        while done < self._total:
            chunk = await asyncio.to_thread(self._file.read, min(_CHUNK_BYTES, self._total - done))
            if not chunk:
                # The length is promised already: a shorter body must not pass for a whole one.
                raise OSError("The file became shorter while it was sent.")
            await writer.write(chunk)
            done += len(chunk)
            self._report(done)

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002 - it is the file's
    ) -> None:
        await self.write(writer)


def cache_directory() -> Path:
    """Return the directory of this user for locks and packages, made if it isn't there."""
    candidates = [Path(tempfile.gettempdir()) / f"ray-jobs-{os.getuid()}"]
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be ignored, says the XDG specification
        candidates.insert(0, Path(base) / "ray-jobs")
    else:
        with contextlib.suppress(RuntimeError):  # no home
            candidates.insert(0, Path.home() / ".cache" / "ray-jobs")
    failure: OSError | None = None
    for directory in candidates:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # In a shared /tmp somebody else may have been first.
            if os.access(directory, os.W_OK) and directory.stat().st_uid == os.getuid():
                return directory
        except OSError as error:
            failure = error
    raise errors.RayJobsError(
        f"There is no directory for packages: {failure or candidates[-1]}.",
        hint="Set XDG_CACHE_HOME to a directory that can be written.",
    )


@contextlib.asynccontextmanager
async def _locked(directory: Path, server: str, uri: str) -> AsyncIterator[None]:
    """Hold the lock of one package for one server."""
    import filelock

    name = hashlib.sha256(f"{server} {uri}".encode()).hexdigest()[:32]
    path = directory / f"{name}.lock"
    # Not bound to a thread: it is taken and given back in whichever is free.
    lock: Any = filelock.FileLock(path, thread_local=False)
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            await asyncio.sleep(LOCK_POLL_S)
    try:
        # That other locks were taken long ago is all that is known of them: see `_clean`.
        os.utime(path)
        _clean(directory)
        yield
    finally:
        lock.release()


def _clean(directory: Path) -> None:
    """Remove lock files that nobody took for a day.

    One of them being held just now does no harm: a package would be sent twice.
    """
    oldest = time.time() - OLD_LOCK_S
    for path in directory.glob("*.lock"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
