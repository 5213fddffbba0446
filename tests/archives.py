"""Archives for tests: good ones, and some that no node should unpack."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile

MIB = 1024 * 1024


def zip_of(members: dict[str, bytes] | None = None, *, mode: int = stat.S_IFREG | 0o644) -> bytes:
    """Return a zip of these files, each with `mode`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members or {"main.py": b"print('packed')\n"}).items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return buffer.getvalue()


def zip_of_size(size: int) -> bytes:
    """Return a zip of more than `size` bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", os.urandom(size))
    return buffer.getvalue()


def sized_zip(size: int) -> bytes:
    """Return a zip of `size` bytes."""
    return zip_of_size(size - len(zip_of_size(0)))


def inflating_zip(unpacked_bytes: int) -> bytes:
    """Return a zip of zeros, a thousandth of what it unpacks to."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("zeros", "w", force_zip64=True) as member,
    ):
        for _ in range(unpacked_bytes // MIB):
            member.write(bytes(MIB))
    return buffer.getvalue()


def tar_of(members: list[tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    """Return a tar of these members, filled with zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member, _Zeros())
    return buffer.getvalue()


def tar_member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.type = kind
    return member


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(max(0, size))
