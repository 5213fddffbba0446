"""Packages: what they are named after, and how they are built."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ray_jobs.client.ignore import Entry, default_excludes, ignore_file_names, scan, size_text
from ray_jobs.errors import InvalidRuntimeEnv, PackageTooLarge, RayJobsError

#: Part of every hash, to be changed with what is hashed or how it is packed.
_FORMAT = b"ray-jobs package 1\0"
_CHUNK_BYTES = 1024 * 1024
#: The time of every file in a package: the same bytes make the same package.
_TIME = (1980, 1, 1, 0, 0, 0)
#: Fast; what a package holds (sources, mostly) gets little smaller with more effort.
_COMPRESSION_LEVEL = 1

#: Called with the bytes that were read so far. May raise, to stop.
Report = Callable[[int], None]


@dataclass(frozen=True)
class Package:
    """Something local that a runtime environment names, to be sent to the cluster."""

    field: str  #: Where it stands in the runtime environment, as in `py_modules[0]`.
    path: Path
    #: A directory to be packed, a single module to be packed, or a file to be sent as it is.
    kind: str = "directory"
    excludes: tuple[str, ...] = ()
    include_parent: bool = False  #: Whether the directory itself is in the package.


@dataclass(frozen=True)
class Content:
    """What is in a package."""

    package: Package
    entries: list[Entry]

    @property
    def total_bytes(self) -> int:
        """Return the size of the files, before they are compressed."""
        return sum(entry.size for entry in self.entries)


def find_content(package: Package) -> Content:
    """Find the files of a package.

    Raises:
        InvalidRuntimeEnv: something can't be read.
    """
    path = package.path
    if package.kind != "directory":
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(str(path), error) from error
        return Content(package, [Entry(path.name, str(path), status.st_size)])
    entries = scan(path, [*default_excludes(), *package.excludes], ignore_file_names())
    if package.include_parent:
        entries = [
            Entry(
                f"{path.name}/{entry.name}",
                entry.path,
                entry.size,
                entry.is_directory,
                entry.is_executable,
            )
            for entry in entries
        ]
    return Content(package, entries)


class _Digest:
    """The hash of a package: of names, executable bits and contents, and of nothing else."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(_FORMAT)

    def add(self, entry: Entry, content: bytes) -> None:
        """Add an entry, with the hash of its content."""
        kind = b"d" if entry.is_directory else b"x" if entry.is_executable else b"f"
        name = os.fsencode(entry.name)
        self._hash.update(kind + len(name).to_bytes(8, "big") + name + content)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest_of(content: Content, report: Report) -> str:
    """Return the hash of a package that is to be built, or that is a file.

    Raises:
        InvalidRuntimeEnv: a file can't be read.
    """
    reader = _Reader(report)
    if content.package.kind == "file":
        return reader.read(content.entries[0], None)
    digest = _Digest()
    for entry in content.entries:
        digest.add(entry, b"" if entry.is_directory else reader.read(entry, None).encode())
    return digest.hexdigest()


def build(content: Content, output: IO[bytes], limit: int, report: Report) -> str:
    """Write a package, and return the hash of what is in it.

    Raises:
        InvalidRuntimeEnv: a file can't be read, or its name is not UTF-8.
        PackageTooLarge: it is over the limit; no more than that was written.
    """
    reader = _Reader(report)
    digest = _Digest()
    limited = _Limited(output, limit)
    try:
        with zipfile.ZipFile(
            cast(IO[bytes], limited),  # it has all that ZipFile needs of a file
            "w",
            zipfile.ZIP_DEFLATED,
            compresslevel=_COMPRESSION_LEVEL,
        ) as archive:
            for entry in content.entries:
                digest.add(entry, _add(archive, entry, reader))
    except _OverLimit:
        raise too_large(content, None, limit) from None
    size = output.seek(0, os.SEEK_END)
    if size > limit:
        raise too_large(content, size, limit)
    return digest.hexdigest()


def _add(archive: zipfile.ZipFile, entry: Entry, reader: _Reader) -> bytes:
    name = entry.name + ("/" if entry.is_directory else "")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRuntimeEnv(
            f"The name of {os.fsencode(entry.path)!r} is not UTF-8, so it can't be packed.",
            hint="Rename it, or name it in `excludes`.",
        ) from None
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system = 3  # Unix, so that the mode below is one of its
    if entry.is_directory:
        info.external_attr = (0o040755 << 16) | 0x10
        archive.writestr(info, b"")
        return b""
    info.external_attr = (0o100755 if entry.is_executable else 0o100644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    info.file_size = entry.size
    # The file may have grown since; the reserve for ZIP64 costs 20 bytes.
    with archive.open(info, "w", force_zip64=entry.size > zipfile.ZIP64_LIMIT // 2) as target:
        return reader.read(entry, target).encode()


class _Reader:
    """Reads files, and tells how far it got."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._done = 0

    def read(self, entry: Entry, target: IO[bytes] | None) -> str:
        """Return the hash of a file's content, after copying it to the target."""
        digest = hashlib.sha256()
        try:
            source = open(entry.path, "rb")  # noqa: SIM115 - only its own errors are ours
        except OSError as error:
            raise _unreadable(entry.path, error) from error
        with source:
            while True:
                try:
                    chunk = source.read(_CHUNK_BYTES)
                except OSError as error:
                    raise _unreadable(entry.path, error) from error
                if not chunk:
                    return digest.hexdigest()
                digest.update(chunk)
                if target is not None:
                    target.write(chunk)
                self._done += len(chunk)
                self._report(self._done)


class _OverLimit(Exception):
    pass


class _Limited:
    """A file that refuses to grow past a limit: nobody wants 20 GB on the disk by mistake."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._limit = limit
        self.mode = "wb"

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._limit:
            # The list of contents that follows a failed write is let through.
            self._limit = 1 << 62
            raise _OverLimit
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        self._file.flush()


def uri_of(package: Package, digest: str) -> str:
    """Return the URI of a package with this hash."""
    name = package.path.name
    if package.kind != "file":
        return f"gcs://_ray_pkg_{digest[:40]}.zip"
    if name.endswith(".whl"):
        return f"gcs://{_wheel_name(name, digest)}"
    for ending, extension in ((".tar.gz", ".tar.gz"), (".tgz", ".tar.gz"), (".tar.xz", ".tar.xz")):
        if name.endswith(ending):
            return f"gcs://_ray_pkg_{digest[:40]}{extension}"
    return f"gcs://_ray_pkg_{digest[:40]}.zip"


def _wheel_name(name: str, digest: str) -> str:
    """Return a wheel's name with its hash in it, as the build tag that PEP 427 provides.

    pip needs the rest of the name as it is. Without the hash, a wheel that was built anew under
    the same version would never be sent again.
    """
    parts = name.removesuffix(".whl").split("-")
    if len(parts) not in {5, 6}:
        raise InvalidRuntimeEnv(f"{name} is not the name of a wheel (PEP 427).")
    build_tag = f"{parts[2] if len(parts) == 6 else '0'}h{digest[:16]}"
    return "-".join([*parts[:2], build_tag, *parts[-3:]]) + ".whl"


def too_large(content: Content, size: int | None, limit: int) -> PackageTooLarge:
    """Return the error for a package over the limit.

    Args:
        size: Of the package in bytes; None when it wasn't built to its end.
    """
    package = content.package
    message = f"The package of {package.field} ({package.path}) is over the server's limit of "
    message += f"{size_text(limit)}: "
    if size is not None:
        message += f"it takes {size_text(size)}."
    else:
        message += (
            f"its files take {size_text(content.total_bytes)} unpacked, and packing them was given "
            "up at the limit."
        )
    message += " Nothing was sent."
    if package.kind == "directory":
        largest = sorted(content.entries, key=lambda entry: entry.size, reverse=True)[:5]
        message += " The largest files:" + "".join(
            f"\n  {size_text(entry.size):>10}  {entry.name}" for entry in largest
        )
    return PackageTooLarge(
        message,
        hint="Leave out what the job doesn't need by `excludes` or a .rayignore file, or put the "
        "package where the cluster can fetch it and give its URI (s3://, gs://, "
        "https://host/package.zip).",
    )


def temporary_file(directory: Path) -> IO[bytes]:
    """Return a file without a name, so that none is left behind however this process ends."""
    try:
        return tempfile.TemporaryFile(dir=directory)
    except OSError as error:
        raise RayJobsError(f"No file can be made in {directory}: {error.strerror}.") from error


def _unreadable(path: str, error: OSError) -> InvalidRuntimeEnv:
    return InvalidRuntimeEnv(
        f"{path} can't be read: {error.strerror}.",
        hint="Name it in `excludes` or in a .rayignore file if the job doesn't need it.",
    )
