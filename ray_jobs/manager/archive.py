"""Where finished jobs are kept for good: a folder, or whatever fsspec has a URL for.

Every call blocks, and belongs into a thread; any of them may be repeated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from ray_jobs.keeper.files import own_folder
from ray_jobs.log_holes import dropped, end_of_data, has_hole, read_kept
from ray_jobs.models import gap_notice

#: Of a log that is copied, read at once.
COPY_BYTES = 1024 * 1024
#: Another disk, and file systems on which a file has one name.
CANT_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class BadArchive(ValueError):
    """The archive that was asked for can't be used, however often it is tried."""


class UnreadableLog(OSError):
    """A log can't be read. The archive isn't to blame, and other jobs may leave."""


class Archive(Protocol):
    """Files by their names, which may have slashes. What fails raises `OSError`, or anything."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once and for good: it is there entirely, or not at all."""

    def copy(self, name: str, source: int, *, is_bounded: bool = False) -> None:
        """Write a file from an open one. One that is there is kept: it is whole.

        Args:
            is_bounded: Its middle may have been dropped (`max_log_bytes`): a line takes its place.
        """


class FolderArchive:
    """An archive on a disk. Files and folders that it makes are their owner's only.

    Args:
        is_exposed: Where it is, other users may make folders too: one that isn't ours isn't used.
    """

    def __init__(self, folder: Path, *, is_exposed: bool = False) -> None:
        self._root = folder
        self._is_exposed = is_exposed

    def write(self, name: str, data: bytes) -> None:
        with self._new(name) as fd, open(fd, "wb", closefd=False) as file:
            file.write(data)

    def copy(self, name: str, source: int, *, is_bounded: bool = False) -> None:
        if os.path.lexists(self._root / name):
            self.sync(name)
            return
        with self._new(name) as fd, open(fd, "wb", closefd=False) as file:
            for piece in pieces(source, is_bounded):
                file.write(piece)

    def make_folder(self, name: str) -> None:
        """Make the folder for a file."""
        folders = (self._root / name).relative_to(self._root).parents
        for folder in [self._root, *(self._root / each for each in reversed(folders[:-1]))]:
            if self._is_exposed:
                own_folder(str(folder))
            else:
                os.makedirs(folder, 0o700, exist_ok=True)

    def can_link(self, folder: str) -> bool:
        """Return whether files of a folder can have a name in the archive too: by trying it."""
        path = os.path.join(folder, f".ray_jobs_probe_{uuid.uuid4().hex}")
        probe = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._link(os.path.basename(path), probe)
            os.unlink(self._root / os.path.basename(path))
        except OSError as error:
            if error.errno not in CANT_LINK:
                raise
            return False
        finally:
            os.close(probe)
            os.unlink(path)
        return True

    def link(self, name: str, source: int) -> None:
        """Give an open file a name in the archive, and have what it holds on the disk.

        A file that has the name is kept: it is whole, and of a manager before, or after, this one.
        The folder must be there, and be synced when its files have their names.
        """
        try:
            os.fsync(source)
        except OSError as error:
            if error.errno == errno.EIO:
                raise UnreadableLog(*error.args) from error
            raise
        with contextlib.suppress(FileExistsError):
            self._link(name, source)

    def sync(self, name: str) -> None:
        """Have the names in the folder of a file on the disk, and that of the folder."""
        for folder in ((self._root / name).parent, (self._root / name).parent.parent):
            sync_folder(folder)

    def _link(self, name: str, source: int) -> None:
        # By its number: its name may be another file's by now.
        target = self._root / name
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{source}", target.name, dst_dir_fd=folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _new(self, name: str) -> Iterator[int]:
        """Give a file that gets its name once all of it is on the disk."""
        self.make_folder(name)
        path = self._root / name
        part = path.with_name(f".{path.name}.part")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)  # of a manager that was killed, or isn't quite dead
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

        def is_still(name: Path) -> bool:
            return os.path.samestat(os.lstat(name), os.fstat(fd))

        try:
            yield fd
            os.fsync(fd)
            if not is_still(part):
                raise FileExistsError(errno.EEXIST, "another manager writes it", str(part))
            os.rename(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                if is_still(part):
                    os.unlink(part)
            raise
        finally:
            os.close(fd)
        sync_folder(path.parent)


class UrlArchive:
    """An archive behind a URL, by fsspec. Connects when it is used first, and after a failure.

    Object stores have a file entirely or not at all, and serve threads side by side. Others (FTP,
    SFTP, WebDAV) have one connection for one caller at a time, and show a file that is being sent.

    Raises `BadArchive` if fsspec, or what it needs for this kind of URL, isn't installed.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            import fsspec
        except ImportError:
            raise BadArchive(
                "a URL needs fsspec: install ray-jobs[archive] where the head node runs"
            ) from None
        self._fsspec = fsspec
        try:
            kind = fsspec.get_filesystem_class(urlsplit(url).scheme)
        except Exception as error:  # noqa: BLE001 - of the import of anybody's package
            raise BadArchive(str(error)) from None
        self._is_object_store = bool(kind.async_impl)
        self._turn: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if self._is_object_store else threading.Lock()
        )
        self._connected: tuple[Any, str] | None = None

    def write(self, name: str, data: bytes) -> None:
        def put(files: Any, path: str) -> None:
            if self._is_object_store:
                files.pipe_file(path, data)
                return
            part = f"{path}.part"
            files.pipe_file(part, data)
            if files.exists(path):  # of a try whose answer was lost: not all replace a file
                files.rm_file(path)
            files.mv(part, path)

        self._put(name, put)

    def copy(self, name: str, source: int, *, is_bounded: bool = False) -> None:
        def put(files: Any, path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                # A smaller one is a part: not all file systems have a file at once, or not at all.
                if files.size(path) >= archived_bytes(source, is_bounded):
                    return
            with files.open(path, "wb") as file:
                for piece in pieces(source, is_bounded):
                    file.write(piece)

        self._put(name, put)

    def _put(self, name: str, put: Callable[[Any, str], None]) -> None:
        """Write a file of the archive."""
        with self._turn:
            if self._connected is None:
                self._connected = self._fsspec.core.url_to_fs(self._url)
            files, root = self._connected
            path = f"{root.rstrip('/')}/{name}"
            try:
                self._put_in_folder(files, path, put)
            except BaseException:
                self._connected = None  # it may be the connection that is broken
                raise

    def _put_in_folder(self, files: Any, path: str, put: Callable[[Any, str], None]) -> None:
        """Write a file, and make the folder for it if it may be that which is missing."""
        try:
            put(files, path)
        except Exception:  # what a missing folder is depends on the file system
            # Paths of object stores begin with the bucket. A missing one isn't made: it may be a
            # slip of the pen, and anyone may have it by now.
            bucket = path.partition("/")[0]
            if bucket and not files.exists(bucket):
                raise
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            put(files, path)


def open_archive(place: str, default: Path) -> Archive:
    """Return the archive that was asked for.

    Args:
        place: An absolute folder, or a URL. Empty: the default.
        default: A folder.

    Raises `BadArchive`.
    """
    if not place:
        return FolderArchive(default, is_exposed=True)
    try:
        url = urlsplit(place)
        is_file = url.scheme in ("file", "local")
        if "://" in place and not is_file:
            return UrlArchive(place)
        folder = Path(unquote(url.path)) if is_file else Path(place).expanduser()
    except (ValueError, RuntimeError) as error:  # of a URL, of a user's folder
        raise BadArchive(str(error)) from None
    if not folder.is_absolute() or (is_file and url.netloc not in ("", "localhost")):
        raise BadArchive("the folder must be given from the root on")
    return FolderArchive(folder)


def archived_bytes(source: int, is_bounded: bool) -> int:
    """Return how many bytes the archive has of an open log: those of its `pieces`."""
    if not is_bounded or not has_hole(source):
        return os.fstat(source).st_size
    offset = size = 0
    while True:
        missing = dropped(source, offset)
        start = offset + missing
        offset = end_of_data(source, start)
        if offset == start:
            return size
        size += (len(gap_notice(missing).encode()) if missing else 0) + offset - start


def pieces(source: int, is_bounded: bool) -> Iterator[bytes]:
    """Yield what an open log holds; a line in place of what was dropped of a bounded one.

    Raises `UnreadableLog`.
    """
    offset = 0
    while True:
        try:
            dropped, data = (
                read_kept(source, offset, COPY_BYTES)
                if is_bounded
                else (0, os.pread(source, COPY_BYTES, offset))
            )
        except OSError as error:
            raise UnreadableLog(*error.args) from error
        if dropped and data:
            yield gap_notice(dropped).encode()
        if not data:
            return
        yield data
        offset += dropped + len(data)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
