"""Whether an uploaded package is an archive that a node can unpack without harm. Standard library.

Ray unpacks packages on every node that needs them. It leaves out members that would land elsewhere,
writes a link of a zip as a file that holds the link's text, and unpacks whatever size comes out. So
what would go wrong there, far from who sent it, is refused at the upload.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
from typing import IO, Any, cast

ZIP_SUFFIXES = (".zip", ".whl", ".jar")
TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: A package may unpack to so many bytes whatever its own size,
FREE_UNPACKED_BYTES = 512 * 1024 * 1024
#: and beyond that to so many times its own size. Deflate reaches a thousand, with zeros.
MAX_INFLATION = 200
MAX_MEMBERS = 500_000
#: Of what a tar says of one member, and of what it says of all.
MAX_HEADER_BYTES = 1024 * 1024
MAX_HEADERS_BYTES = 2048 * MAX_MEMBERS
#: Of the list of members that a zip ends with.
MAX_DIRECTORY_BYTES = 256 * MAX_MEMBERS
#: Of what programs add there for one member: times, owners, sizes above 4 GiB. `zipfile` takes time
#: by the square of it.
MAX_EXTRA_BYTES = 1024
#: Packages above this size count as big ones, and zips of more members than this.
BIG_PACKAGE_BYTES = 8 * 1024 * 1024
BIG_PACKAGE_MEMBERS = 10_000
_MAX_SHOWN_CHARS = 80


class BadPackage(ValueError):
    """The package can't be unpacked as it should. The message is for who sent it."""


def needs_process(name: str, file: IO[bytes]) -> bool:
    """Return whether checking a package is left to a process of its own, with limits of its own.

    A tar has no list of its members: all of it must be decompressed, however small it is.

    Args:
        file: Seekable. Where it stands afterwards is open. Up to `BIG_PACKAGE_BYTES` are read.
    """
    if is_tar(name) or file.seek(0, os.SEEK_END) > BIG_PACKAGE_BYTES:
        return True
    file.seek(0)
    # There are no more members than this: each in the list begins with it.
    return name.endswith(ZIP_SUFFIXES) and file.read().count(_ZIP_ENTRY) > BIG_PACKAGE_MEMBERS


def is_tar(name: str) -> bool:
    """Return whether a package is a tar by its file name."""
    return name.endswith(TAR_SUFFIXES)


def check_package(name: str, file: IO[bytes]) -> None:
    """Raise `BadPackage`, or return. Kinds of files that Ray doesn't unpack are left alone.

    Args:
        name: The package's file name, whose end tells its kind.
        file: Seekable. Where it stands afterwards is open.
    """
    limit = max(FREE_UNPACKED_BYTES, MAX_INFLATION * file.seek(0, os.SEEK_END))
    file.seek(0)
    try:
        if name.endswith(ZIP_SUFFIXES):
            _check_zip(file, limit)
        elif name.endswith(TAR_SUFFIXES):
            _check_tar(file, limit)
    except BadPackage:
        raise
    except MemoryError:
        raise BadPackage(
            f"The package {_shown(name)} needs more memory to be looked through than there is."
        ) from None
    # What the two modules raise for bytes that are something else is a long list.
    except Exception as error:  # noqa: BLE001
        kind = "zip" if name.endswith(ZIP_SUFFIXES) else "tar"
        raise BadPackage(f"The package {_shown(name)} isn't a {kind} archive: {error}") from None


def _check_zip(file: IO[bytes], limit: int) -> None:
    with zipfile.ZipFile(cast(IO[bytes], _CountedDirectory(file))) as archive:
        members = archive.infolist()
    unpacked = 0
    for member in members:
        # `orig_filename`: the other one is cut off at a NUL.
        _check_path(member.orig_filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BadPackage(
                f"The package holds {_shown(member.filename)}, which is no file but a link or a"
                " device: Ray would unpack it as a text file. Pack what it points to."
            )
        if member.flag_bits & 1:
            raise BadPackage(f"The package holds {_shown(member.filename)}, which is encrypted.")
        # Of members of one name, Ray unpacks the last one for each. It never unpacks to more than
        # it says, or Ray's unpacking fails.
        unpacked += archive.getinfo(member.filename).file_size
        _check_size(unpacked, limit)


def _check_tar(file: IO[bytes], limit: int) -> None:
    """Links are let pass: Ray leaves them out of what it unpacks, and many a tar has some."""
    with _decompressed(file) as plain:
        headers = _HeadersOnly(plain)
        with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
            unpacked = count = 0
            while (member := archive.next()) is not None:
                archive.members = []  # it would keep all of them
                headers.begin_member()
                count += 1
                _check_count(count)
                _check_path(member.name)
                # Else the next one begins where this one did, or before it.
                if member.size < 0 or archive.offset < member.offset_data:
                    raise BadPackage(
                        f"The package holds {_shown(member.name)}, which says a size that none has."
                    )
                # Before it is skipped, for which it must be decompressed. A sparse file takes
                # another size in the archive than on the disk.
                skipped = archive.offset - member.offset_data - (tarfile.BLOCKSIZE - 1)
                unpacked += max(member.size, skipped)
                _check_size(unpacked, limit)


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """Return the bytes inside; by what a file begins with, as Ray does it."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(file))
    if magic.startswith(b"BZh"):
        return bz2.open(file)
    if magic.startswith((b"\xfd7zXZ", b"\x5d\x00\x00\x80")):
        return lzma.open(file)
    return io.BufferedReader(_Kept(file))


class _Kept(io.RawIOBase):
    """A file that its user may close without closing it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)


class _HeadersOnly:
    """What `tarfile` may read to list an archive: a header that says it has gigabytes isn't one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell
        self.seek = file.seek
        self._left = MAX_HEADERS_BYTES
        self.begin_member()

    def begin_member(self) -> None:
        self._left_of_member = MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        self._left -= size
        self._left_of_member -= size
        if size < 0 or self._left_of_member < 0:
            raise BadPackage("The package has a header of more than a megabyte.")
        if self._left < 0:
            raise BadPackage(f"The package has headers of more than {MAX_HEADERS_BYTES:,} bytes.")
        return self._file.read(size)


class _CountedDirectory:
    """What `zipfile` reads to list an archive: it would keep half a kilobyte for each member."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise BadPackage(f"The package's list of files is over {MAX_DIRECTORY_BYTES:,} bytes.")
        data = self._file.read(size)
        # It reads the list at once, and tells nobody that it is the list.
        if data.startswith(_ZIP_ENTRY):
            _check_directory(data)
        return data


_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_ENTRY_BYTES = 46
#: The lengths of name, extra field and comment, which follow.
_ZIP_LENGTHS = struct.Struct("<3H")
_ZIP_LENGTHS_AT = 28


def _check_directory(directory: bytes) -> None:
    """Hold a zip's list to what `zipfile` may be given to read."""
    count = at = 0
    while at + _ZIP_ENTRY_BYTES <= len(directory):
        name, extra, comment = _ZIP_LENGTHS.unpack_from(directory, at + _ZIP_LENGTHS_AT)
        if extra > MAX_EXTRA_BYTES:
            start = at + _ZIP_ENTRY_BYTES
            shown = _shown(directory[start : start + name].decode(errors="replace"))
            raise BadPackage(
                f"The package holds {shown} with {extra:,} bytes of extra fields, more than"
                f" {MAX_EXTRA_BYTES:,}."
            )
        at += _ZIP_ENTRY_BYTES + name + extra + comment
        count += 1
        _check_count(count)


def _check_count(members: int) -> None:
    if members > MAX_MEMBERS:
        raise BadPackage(f"The package holds more than {MAX_MEMBERS:,} files.")


def _check_path(path: str) -> None:
    if path.startswith("/") or posixpath.normpath(path).split("/", 1)[0] == "..":
        raise BadPackage(
            f"The package holds {_shown(path)}, which would land outside of the folder to which"
            " the package is unpacked. Pack it with paths below its root."
        )


def _check_size(unpacked: int, limit: int) -> None:
    if unpacked > limit:
        raise BadPackage(
            f"The package unpacks to more than {limit:,} bytes, which is the limit for one of its"
            f" size ({FREE_UNPACKED_BYTES:,} bytes, or {MAX_INFLATION} times its own size). Put"
            " large files into remote storage."
        )


def _shown(name: str) -> str:
    return repr(name[:_MAX_SHOWN_CHARS])
