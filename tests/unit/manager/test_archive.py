"""The archive of finished jobs: folders, and URLs by fsspec."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest

from ray_jobs.log_holes import trim
from ray_jobs.manager.archive import (
    Archive,
    BadArchive,
    FolderArchive,
    UrlArchive,
    archived_bytes,
    open_archive,
)
from ray_jobs.manager.archive_line import FoundLog, archive_line, archived_log
from ray_jobs.manager.retention import COPIES_AT_ONCE
from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from tests.ftp import FtpServer

MakeArchive = Callable[[], Archive]


def size_of(archive: Archive, name: str) -> int | None:
    """Return the size of a file in the archive, None if there is none."""
    if isinstance(archive, FolderArchive):
        path = archive._root / name
        return path.stat().st_size if path.exists() else None
    assert isinstance(archive, UrlArchive)
    files, root = fsspec.core.url_to_fs(archive._url)
    place = f"{root}/{name}"
    return int(files.size(place)) if files.exists(place) else None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FtpServer]:
    with FtpServer(tmp_path / "remote") as server:
        yield server


@pytest.fixture(params=["folder", "file", "memory", "ftp"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeArchive:
    place = {
        "folder": str(tmp_path / "deep" / "archive"),
        "file": f"file://{tmp_path}/an%20archive",
        "memory": f"memory://bucket/{uuid.uuid4().hex}/",
    }.get(request.param) or request.getfixturevalue("server").url
    return lambda: open_archive(place, tmp_path / "default")


def test_files_are_found_again(make: MakeArchive, tmp_path: Path) -> None:
    archive = make()
    assert size_of(archive, "jobs-1.jsonl") is None
    archive.write("jobs-1.jsonl", b"{}\n")
    archive.write("jobs-1.jsonl", b"{}\n{}\n")  # once more
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3_000_000)
    for _ in range(2):
        with log.open("rb") as file:
            archive.copy("logs/hour/a.log", file.fileno())
    assert size_of(make(), "jobs-1.jsonl") == 6
    assert size_of(make(), "logs/hour/a.log") == 3_000_000


def test_a_log_that_is_there_is_kept(make: MakeArchive, tmp_path: Path) -> None:
    """By a manager that isn't quite dead, which opened the log of a new job with the id."""
    archive = make()
    (tmp_path / "log").write_bytes(b"x" * 3_000_000)
    (tmp_path / "new").write_bytes(b"y" * 1000)
    for name in ("log", "new"):
        with (tmp_path / name).open("rb") as file:
            archive.copy("logs/hour/a.log", file.fileno())
    assert size_of(archive, "logs/hour/a.log") == 3_000_000


def test_a_log_that_is_linked_is_kept(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    archive.make_folder("logs/a.log")
    for text in ("old", "new"):
        (tmp_path / text).write_text(text)
        with (tmp_path / text).open() as file:
            archive.link("logs/a.log", file.fileno())
            archive.link("logs/a.log", file.fileno())
    assert (tmp_path / "archive/logs/a.log").read_text() == "old"


def test_two_managers_write_a_file_at_once(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    former = archive._new("logs/a.log")
    former_fd = former.__enter__()
    os.write(former_fd, b"half")
    with archive._new("logs/a.log") as fd:
        os.write(fd, b"whole")
        with pytest.raises(FileExistsError):
            former.__exit__(None, None, None)
    assert (tmp_path / "archive/logs/a.log").read_text() == "whole"
    assert len(list((tmp_path / "archive/logs").iterdir())) == 1


def test_a_part_of_a_log_is_made_whole(tmp_path: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    archive = open_archive(root, Path())
    archive.write("logs/hour/a.log", b"half")
    (tmp_path / "log").write_bytes(b"whole")
    with (tmp_path / "log").open("rb") as file:
        archive.copy("logs/hour/a.log", file.fileno())
    assert fsspec.filesystem("memory").cat_file(f"{root}/logs/hour/a.log") == b"whole"


def test_a_connection_that_broke_is_opened_anew(server: FtpServer) -> None:
    archive = open_archive(server.url, Path())
    archive.write("jobs-1.jsonl", b"{}\n")
    server.kill()
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever a file system raises
        archive.write("jobs-2.jsonl", b"{}\n")
    server.start()
    archive.write("jobs-2.jsonl", b"{}\n")
    assert (server.archive / "jobs-2.jsonl").read_bytes() == b"{}\n"


def test_a_file_is_written_again_after_its_answer_was_lost(server: FtpServer) -> None:
    for _ in range(2):
        open_archive(server.url, Path()).write("jobs-1.jsonl", b"{}\n")
    assert [each.name for each in server.archive.iterdir()] == ["jobs-1.jsonl"]


def test_many_logs_over_one_connection(server: FtpServer, tmp_path: Path) -> None:
    archive = open_archive(server.url, Path())
    logs = {f"logs/hour/{number}.log": bytes([number]) * 200_000 for number in range(30)}

    def copy(name: str) -> None:
        path = tmp_path / os.path.basename(name)
        path.write_bytes(logs[name])
        with path.open("rb") as file:
            archive.copy(name, file.fileno())

    with ThreadPoolExecutor(COPIES_AT_ONCE) as threads:
        list(threads.map(copy, logs))
    assert {name: (server.archive / name).read_bytes() for name in logs} == logs


def test_a_file_that_is_being_sent_has_another_name(server: FtpServer) -> None:
    """Whoever reads the archive meanwhile, or after a death, finds whole lines."""
    archive = open_archive(server.url, Path())
    line = b"{}" + b" " * 1_000_000 + b"\n"
    seen = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for path in server.archive.glob("*.jsonl"):
                with contextlib.suppress(FileNotFoundError):  # it is replaced
                    seen.add(path.stat().st_size)

    with ThreadPoolExecutor(1) as threads:
        looking = threads.submit(look)
        for number in range(20):
            archive.write(f"jobs-{number}.jsonl", line)
        over.set()
        looking.result()
    assert seen == {len(line)}


class ObjectStore:
    """An object store, whose buckets are made when they are asked for."""

    def __init__(self, buckets: set[str]) -> None:
        self.buckets = buckets
        self.objects: dict[str, bytes] = {}

    def pipe_file(self, path: str, data: bytes) -> None:
        if path.partition("/")[0] not in self.buckets:
            raise FileNotFoundError(path)
        self.objects[path] = data

    def exists(self, path: str) -> bool:
        return path in self.buckets

    def makedirs(self, path: str, exist_ok: bool) -> None:
        self.buckets.add(path.partition("/")[0])


def test_no_bucket_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = UrlArchive("memory://mine/jobs")
    store = ObjectStore({"yours"})
    monkeypatch.setattr(archive, "_is_object_store", True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (store, "mine/jobs"))
    with pytest.raises(FileNotFoundError):
        archive.write("jobs-1.jsonl", b"{}")
    assert store.buckets == {"yours"}
    store.buckets.add("mine")
    archive.write("jobs-1.jsonl", b"{}")
    assert store.objects == {"mine/jobs/jobs-1.jsonl": b"{}"}


def test_a_folder_behind_a_url_is_made(tmp_path: Path) -> None:
    archive = UrlArchive(f"file://{tmp_path}/new/archive")
    archive.write("jobs-1.jsonl", b"{}")
    (tmp_path / "log").write_bytes(b"text")
    with (tmp_path / "log").open("rb") as file:
        archive.copy("logs/hour/a.log", file.fileno())
    assert (tmp_path / "new/archive/jobs-1.jsonl").read_bytes() == b"{}"
    assert (tmp_path / "new/archive/logs/hour/a.log").read_bytes() == b"text"


def test_what_was_dropped_of_a_log_is_not_copied_as_zeros(
    make: MakeArchive, tmp_path: Path
) -> None:
    archive = make()
    log = tmp_path / "log"
    log.write_bytes(b"x" * 30_000_000)
    trim(str(log), 1_048_576)
    with log.open("rb") as file:
        archive.copy("logs/hour/a.log", file.fileno(), is_bounded=True)
        archive.copy("logs/hour/b.log", file.fileno())
        assert size_of(archive, "logs/hour/a.log") == archived_bytes(file.fileno(), True)
        assert size_of(archive, "logs/hour/b.log") == archived_bytes(file.fileno(), False)
    size = size_of(archive, "logs/hour/a.log")
    assert size is not None
    assert size < 1_200_000
    assert size_of(archive, "logs/hour/b.log") == 30_000_000


def test_a_url_holds_what_was_written() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    open_archive(root, Path()).write("jobs-1.jsonl", b"{}\n")
    with fsspec.open(f"{root}/jobs-1.jsonl") as file:
        assert file.read() == b"{}\n"


def test_a_folder_is_its_owners_and_holds_no_pieces(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    archive.write("jobs-1.jsonl", b"{}\n")
    assert stat.S_IMODE((tmp_path / "archive").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "archive/jobs-1.jsonl").stat().st_mode) == 0o600
    (tmp_path / "archive/taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        archive.write("taken", b"{}\n")
    assert {each.name for each in (tmp_path / "archive").iterdir()} == {"jobs-1.jsonl", "taken"}


def test_whether_logs_can_be_linked(tmp_path: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    archive.make_folder("logs/a.log")
    assert archive.can_link(str(tmp_path))
    assert not archive.can_link("/dev/shm")
    assert not list(Path("/dev/shm").glob(".ray_jobs_probe_*"))
    assert [each.name for each in (tmp_path / "archive").iterdir()] == ["logs"]


def test_places_that_are_no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("archive", "file:archive", "file://archive/a", "file://"):
        with pytest.raises(BadArchive, match="from the root"):
            open_archive(place, Path())
    for place in ("s3://[bad", "~no-such-user/a"):
        with pytest.raises(BadArchive):
            open_archive(place, Path())
    with pytest.raises(BadArchive, match="nothing"):
        open_archive("nothing://bucket", Path())
    real = builtins.__import__

    def without_fsspec(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "fsspec":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_fsspec)
    with pytest.raises(BadArchive, match=r"ray-jobs\[archive\]"):
        UrlArchive("s3://bucket")


def record() -> JobRecord:
    return JobRecord(
        submission_id="a",
        entrypoint="fetch https://me:secret-word@host/x && echo hidden-value",
        status=JobStatus.FAILED,
        message="the log said hidden-value",
        start_time=1,
        end_time=1_764_012_467_000,
        metadata={"key": "hidden-value"},
        runtime_env={"env_vars": {"NAME": "hidden-value"}, "pip": ["https://t0ken@host/p"]},
        attempt="0123",
        entrypoint_num_cpus=2,
    )


def test_a_line_has_the_job_but_no_secret() -> None:
    text = archive_line(record(), FoundLog(12), 5).decode()
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    for secret in ("secret-word", "hidden-value", "t0ken"):
        assert secret not in text
    line = json.loads(text)
    assert line["submission_id"] == "a"
    assert line["attempt"] == "0123"
    assert line["status"] == "FAILED"
    assert line["end_time"] == 1_764_012_467_000
    assert line["entrypoint_num_cpus"] == 2
    assert line["runtime_env"]["env_vars"] == {"NAME": "<redacted>"}
    assert line["archived_at"] == 5
    assert line["log"] == {"name": "logs/2025-11-24T19/0123.log", "bytes": 12, "removed": False}


def test_a_line_has_ids_and_status_whatever_variables_hold() -> None:
    """A value may be part of them."""
    env_vars = {"STAGE": "production", "A": "FAILED", "B": "0123456"}
    found = msgspec.structs.replace(
        record(),
        submission_id="production-nightly",
        attempt="0123456789",
        driver_node_id="0123456789",
        runtime_env={"env_vars": env_vars},
    )
    line = json.loads(archive_line(found, None, 5))
    assert line["submission_id"] == "production-nightly"
    assert line["status"] == "FAILED"
    assert line["attempt"] == line["driver_node_id"] == "0123456789"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (None, None),
        (FoundLog(0), {"name": None, "bytes": 0, "removed": False}),
        (FoundLog(0, was_removed=True), {"name": None, "bytes": 0, "removed": True}),
    ],
)
def test_a_line_without_a_log(log: FoundLog | None, expected: dict[str, Any] | None) -> None:
    assert json.loads(archive_line(record(), log, 5))["log"] == expected


def test_the_name_of_a_log_fits_everywhere() -> None:
    name = archived_log(record())
    assert name == "logs/2025-11-24T19/0123.log"
    assert not os.path.isabs(name)
