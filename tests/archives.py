"""Archives for tests: good ones, and some that no node should unpack."""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib

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


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a member of any size, a negative one too."""
    return tar_member(name, size).tobuf(tarfile.GNU_FORMAT)


def sparse_member(stored_bytes: int) -> bytes:
    """Return a tar with one file that has zeros in the archive, and is empty by its header."""
    header = bytearray(tar_member("sparse", stored_bytes, tarfile.GNUTYPE_SPARSE).tobuf())
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(stored_bytes)


def listing_zip(members: int, *, extra_bytes: int = 0) -> bytes:
    """Return a zip that lists files, with extra fields, and holds none of them."""
    lengths = (1, extra_bytes)  # of name and extra fields
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *(0,) * 9, *lengths, *(0,) * 5) + b"a"
    entry += bytes(extra_bytes)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, members * len(entry), 0, 0)
    return entry * members + end


def greedy_xz(tar: bytes, dictionary_code: int) -> bytes:
    """Return an xz that wants a large dictionary to be unpacked: 38 stands for 2 GiB."""
    data = bytearray(lzma.compress(tar))
    header = 12  # the stream's comes before the block's
    end = header + (data[header] + 1) * 4
    assert data[header + 2 : header + 4] == b"\x21\x01"
    data[header + 4] = dictionary_code
    data[end - 4 : end] = zlib.crc32(data[header : end - 4]).to_bytes(4, "little")
    return bytes(data)


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(max(0, size))
