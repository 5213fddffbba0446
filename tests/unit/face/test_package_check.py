"""Packages that a node can't unpack as it should are refused; the others are let pass."""

from __future__ import annotations

import contextlib
import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from ray_jobs.dashboard_module import package_check
from ray_jobs.dashboard_module.package_check import BadPackage, check_package, needs_process

from tests.archives import (
    MIB,
    inflating_zip,
    listing_zip,
    sized_zip,
    sparse_member,
    tar_header,
    tar_member,
    tar_of,
    zip_of,
)


@pytest.fixture(autouse=True)
def a_lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_check.FREE_UNPACKED_BYTES == 512 * MIB
    monkeypatch.setattr(package_check, "FREE_UNPACKED_BYTES", 30 * MIB)


def check(name: str, data: bytes) -> None:
    check_package(name, io.BytesIO(data))


EMPTY_ZIP = b"PK\x05\x06" + bytes(18)
INFLATED = 40 * MIB
GOOD = [tar_member("a/b.py", 100), tar_member("./c", 3), tar_member("d", kind=tarfile.DIRTYPE)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", zip_of()),
        ("a.zip", EMPTY_ZIP),
        ("a.zip", zip_of({"a/b/c.py": b"1", "..a": b"", "a/../b": b"", "./c": b"", "a\\b": b""})),
        ("a.zip", zip_of({"zeros": bytes(20_000_000)})),  # a thousandfold, but not much
        ("a.zip", listing_zip(2, extra_bytes=1024)),
        ("a.zip", b"#!/bin/sh\n" + zip_of()),  # a self-extracting one
        ("a.whl", zip_of({"a/__init__.py": b"", "a.dist-info/METADATA": b""})),
        ("a.jar", zip_of()),
        ("a.tar.gz", tar_of(GOOD)),
        ("a.tgz", tar_of([*GOOD, tar_member("link", kind=tarfile.SYMTYPE)])),
        ("a.tar.xz", tar_of(GOOD, "w:xz")),
        ("a.tar.bz2", tar_of(GOOD, "w:bz2")),
        ("a.tar.gz", tar_of(GOOD, "w")),  # by its content, as Ray does it
        ("a.tar.gz", tar_of([tar_member("n" * 300, 10)])),
        ("a.bin", b"anything"),
    ],
)
def test_good_packages(name: str, data: bytes) -> None:
    check(name, data)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.zip", b"", "isn't a zip"),
        ("a.zip", b"no zip at all", "isn't a zip"),
        ("a.zip", zip_of()[:-10], "isn't a zip"),
        ("a.zip", tar_of(GOOD), "isn't a zip"),
        ("a.whl", b"x" * 100, "isn't a zip"),
        ("a.zip", zip_of({"../evil": b"1"}), r"'\.\./evil'.*outside"),
        ("a.zip", zip_of({"a/../../evil": b"1"}), "outside"),
        ("a.zip", zip_of({"/etc/evil": b"1"}), "'/etc/evil'.*outside"),
        ("a.zip", zip_of({"..": b"1"}), "outside"),
        ("a.zip", listing_zip(2, extra_bytes=1025), "'a' with 1,025 bytes of extra fields"),
        ("a.zip", zip_of({"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "'link'.*a link"),
        ("a.zip", zip_of({"pipe": b""}, mode=stat.S_IFIFO | 0o644), "'pipe'"),
        ("a.zip", inflating_zip(INFLATED), "unpacks to more than 31,457,280"),
        ("a.tar.gz", b"", "isn't a tar"),
        ("a.tar.gz", b"\x1f\x8b no gzip", "isn't a tar"),
        ("a.tgz", zip_of(), "isn't a tar"),
        ("a.tar.gz", tar_of(GOOD)[:40], "isn't a tar"),
        ("a.tar.gz", tar_of([tar_member("../evil", 1)]), "outside"),
        ("a.tar.xz", tar_of([tar_member("/evil", 1)], "w:xz"), "outside"),
        ("a.tar.gz", tar_of([tar_member("zeros", INFLATED)]), "unpacks to more than"),
        (
            "a.tar.gz",
            tar_of([tar_member("header", 2_000_000, tarfile.XHDTYPE), tar_member("a")]),
            "header",
        ),
        # The same header again and again.
        ("a.tar.gz", gzip.compress(tar_header("a", -512)), "'a', which says a size"),
        ("a.tar.gz", gzip.compress(tar_header("a", -1)), "'a', which says a size"),
        # Takes forty megabytes of the archive, and nothing of the disk.
        ("a.tar.gz", gzip.compress(sparse_member(INFLATED)), "unpacks to more than"),
    ],
)
def test_bad_packages(name: str, data: bytes, words: str) -> None:
    with pytest.raises(BadPackage, match=words):
        check(name, data)
    assert len(data) < 2_000_000


def test_members_of_one_name() -> None:
    """Ray unpacks the last of them once for each."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", bytes(INFLATED // 2 + 1))
    with pytest.raises(BadPackage, match="unpacks to more than"):
        check("a.zip", buffer.getvalue())


def test_a_size_that_lies_is_believed_when_it_is_large() -> None:
    data = bytearray(zip_of({"a": b"1"}))
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (2**32 - 2).to_bytes(4, "little")
    with pytest.raises(BadPackage, match="unpacks to more than"):
        check("a.zip", bytes(data))


@pytest.mark.parametrize(
    ("name", "data"), [("a.zip", listing_zip(11)), ("a.tar.gz", tar_of([tar_member("a")] * 11))]
)
def test_too_many_files(name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_check, "MAX_MEMBERS", 10)
    with pytest.raises(BadPackage, match="more than 10 files"):
        check(name, data)


def test_headers_of_a_tar_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar_of([tar_member("n" * 300)] * 20)
    check("a.tar.gz", data)
    monkeypatch.setattr(package_check, "MAX_HEADERS_BYTES", 20_000)
    with pytest.raises(BadPackage, match="headers of more than 20,000 bytes"):
        check("a.tar.gz", data)


def test_a_long_list_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    data = listing_zip(1000)
    monkeypatch.setattr(package_check, "MAX_DIRECTORY_BYTES", 10_000)
    with pytest.raises(BadPackage, match="list of files is over 10,000 bytes"):
        check("a.zip", data)


@pytest.mark.parametrize(
    ("name", "make", "limit"),
    [
        # A zip is refused before its members are kept,
        ("a.zip", lambda: listing_zip(20_000), 1000),
        # and of a tar they never are.
        ("a.tar.gz", lambda: gzip.compress(tar_header("a", 0) * 6000), 500_000),
    ],
)
def test_memory(name: str, make: Any, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_check, "MAX_MEMBERS", limit)
    data = make()
    tracemalloc.start()
    try:
        with contextlib.suppress(BadPackage):
            check(name, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB + 2 * len(data)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("gcs://a.zip", lambda: sized_zip(8 * MIB), False),
        ("gcs://a.zip", lambda: sized_zip(8 * MIB + 1), True),
        ("gcs://a.zip", lambda: listing_zip(10_000), False),
        ("gcs://a.jar", lambda: listing_zip(10_001), True),
        ("gcs://a.whl", bytes, False),
        ("gcs://a.tar.gz", bytes, True),
        ("gcs://a.tar.xz", bytes, True),
        ("gcs://a.bin", lambda: listing_zip(10_001), False),
    ],
)
def test_what_is_left_to_a_process_of_its_own(
    name: str, make: Callable[[], bytes], expected: bool
) -> None:
    assert needs_process(name, io.BytesIO(make())) is expected
