"""Logs with a hole: what is dropped, what is kept, and what readers find."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import log_holes
from ray_jobs.log_holes import HEAD_BYTES, dropped, end_of_data, read_kept, trim

MAX_BYTES = 1024 * 1024
BLOCK_BYTES = 4096


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def numbered(lines: int) -> bytes:
    return b"".join(b"%015d\n" % number for number in range(lines))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def opened(log: Path) -> Iterator[int]:
    log.touch()
    fd = os.open(log, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_log_within_its_bound_is_left_alone(log: Path, opened: int) -> None:
    log.write_bytes(numbered(MAX_BYTES // 16))
    trim(str(log), MAX_BYTES)
    assert read_kept(opened, 0, 2 * MAX_BYTES) == (0, log.read_bytes())


def test_no_log() -> None:
    trim("/nonexistent/log", MAX_BYTES)


def test_beginning_and_end_are_kept(log: Path, opened: int) -> None:
    content = numbered(10 * MAX_BYTES // 16)
    log.write_bytes(content)
    trim(str(log), MAX_BYTES)
    assert log.stat().st_size == len(content)
    assert taken(log) <= MAX_BYTES
    assert read_kept(opened, 0, len(content)) == (0, content[:HEAD_BYTES])
    missing, rest = read_kept(opened, HEAD_BYTES, len(content))
    assert rest == content[HEAD_BYTES + missing :]
    assert MAX_BYTES // 2 < HEAD_BYTES + len(rest) <= MAX_BYTES
    # From within the hole, and beyond the end.
    assert read_kept(opened, HEAD_BYTES + 5, 16) == (missing - 5, rest[:16])
    assert read_kept(opened, len(content), 16) == (0, b"")
    assert end_of_data(opened, 0) == HEAD_BYTES


def test_what_was_not_copied_is_kept(log: Path, opened: int) -> None:
    content = numbered(4 * MAX_BYTES // 16)
    log.write_bytes(content)
    trim(str(log), MAX_BYTES, limit=0)
    assert dropped(opened, HEAD_BYTES) == 0
    copied = MAX_BYTES + 100
    trim(str(log), MAX_BYTES, limit=copied)
    missing, rest = read_kept(opened, HEAD_BYTES, len(content))
    assert copied - BLOCK_BYTES < HEAD_BYTES + missing <= copied
    assert rest == content[HEAD_BYTES + missing :]


def test_blocks_that_are_too_large(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As network file systems have them: the beginning and a part of the end don't fit."""
    content = numbered(10 * MAX_BYTES // 16)
    log.write_bytes(content)
    monkeypatch.setattr(log_holes, "_SMALLEST_BLOCK_BYTES", MAX_BYTES)
    with pytest.raises(OSError, match="too large") as caught:
        trim(str(log), MAX_BYTES)
    assert caught.value.errno == errno.EOPNOTSUPP
    trim(str(log), 2 * MAX_BYTES)
    kept = 3 * MAX_BYTES // 4
    assert log.read_bytes()[-kept:] == content[-kept:]
    assert taken(log) <= 3 * MAX_BYTES


def test_it_stays_bounded_and_readers_never_see_zeros(log: Path, opened: int) -> None:
    """A writer, what bounds the log, and a reader behind both, at once."""
    total = 40 * MAX_BYTES
    done = threading.Event()

    def write() -> None:
        with log.open("ab", buffering=0) as file:
            for number in range(0, total // 16, 4096):
                file.write(b"".join(b"%015d\n" % each for each in range(number, number + 4096)))
                trim(str(log), MAX_BYTES)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    offset = 0
    skipped = 0
    while True:
        is_over = done.is_set()
        missing, data = read_kept(opened, offset, 50_000)
        if not data:
            if is_over:
                break
            continue
        skipped += missing
        offset += missing
        first = offset // 16 + (offset % 16 > 0)
        lines = data[-offset % 16 :].split(b"\n")
        assert [int(line) for line in lines[:-1]] == list(range(first, first + len(lines) - 1))
        offset += len(data)
    writer.join()
    assert offset == total
    assert taken(log) <= MAX_BYTES
