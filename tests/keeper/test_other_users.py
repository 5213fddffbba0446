"""Where all users may write, what is another's is neither used nor written to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.keeper.files import open_to_write, own_folder
from ray_jobs.keeper.sockets import short_path
from ray_jobs.log_files import SHELF, is_removed_log, open_log
from ray_jobs.manager.archive import open_archive
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.log_shelf import LogShelf
from ray_jobs.supervisor import node as supervisor_node
from ray_jobs.supervisor import zygotes
from ray_jobs.supervisor.logs import note_in_log, read_at, read_kept_at
from ray_jobs.supervisor.node import HEAD_TOKEN_FILE, attempt_dir, connect_unix, read_status
from tests.other_user import give_away, listening, open_folder

from .conftest import Node


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_folders(folder: Path) -> None:
    ours = folder / "ours"
    own_folder(str(ours))
    assert mode(ours) == 0o700
    ours.chmod(0o775)
    own_folder(str(ours))
    assert mode(ours) == 0o700
    theirs, link = folder / "theirs", folder / "link"
    theirs.mkdir(0o777)
    give_away(theirs)
    link.symlink_to(ours)
    for path in (theirs, link):
        with pytest.raises(PermissionError, match="another user's"):
            own_folder(str(path))
    with pytest.raises(PermissionError, match="another user's"), short_path(str(theirs), "a"):
        pass


@pytest.fixture(params=["link", "pipe", "theirs"])
def planted(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Have something at a log's place that isn't a log of ours."""
    log = folder / "job-driver-a.log"
    if request.param == "link":
        (folder / "precious").write_bytes(b"precious")
        log.symlink_to(folder / "precious")
    elif request.param == "pipe":
        os.mkfifo(log, 0o666)
    else:
        log.touch(0o666)
    give_away(log)
    return log


@pytest.mark.usefixtures("planted")
def test_logs(folder: Path) -> None:
    log = folder / "job-driver-a.log"
    for flags in (0, os.O_APPEND):
        with pytest.raises(OSError, match=r"job-driver-a\.log"):
            open_to_write(str(log), flags)
    logs = JobLogs(str(folder))
    logs.append("a", "secret\n")
    with pytest.raises(OSError, match=r"job-driver-a\.log"):
        logs._write_at("a", 0, b"secret\n")
    note_in_log(str(log), "secret")
    assert read_at(str(log), 0, 100) == b""
    assert read_kept_at(str(log), 0, 100) == (0, b"")
    assert open_log(str(log)) is None
    assert not is_removed_log(str(log))
    for path in folder.iterdir():
        if path.is_file():
            assert path.read_bytes() in (b"", b"precious")


@pytest.mark.usefixtures("planted")
def test_a_log_on_the_shelf_is_not_hidden(folder: Path) -> None:
    (folder / SHELF).mkdir()
    (folder / SHELF / "job-driver-a.log").write_bytes(b"ours")
    fd = open_log(str(folder / "job-driver-a.log"))
    assert fd is not None
    with open(fd, "rb") as file:
        assert file.read() == b"ours"


def test_an_archive_in_another_users_folder(folder: Path) -> None:
    """By default it is in Ray's folder for logs."""
    archive = open_archive("", folder / "archive")
    archive.write("logs/hour/a.log", b"a")
    for path in ("archive", "archive/logs", "archive/logs/hour"):
        assert mode(folder / path) == 0o700
    theirs = folder / "theirs"
    theirs.mkdir(0o777)
    give_away(theirs)
    with pytest.raises(PermissionError, match="another user's"):
        open_archive("", theirs).write("a.jsonl", b"a")


def test_a_job_that_finds_another_users_log(node: Node, planted: Path) -> None:
    client, status = node.spawn("echo secret", log_path=str(planted))
    assert status["state"] == "failed_to_start"
    assert planted.name in status["error"]
    assert client.at_end()


def test_a_log_that_others_may_read_is_closed_to_them(folder: Path) -> None:
    log = folder / "job-driver-a.log"
    log.touch()
    log.chmod(0o644)
    fd = open_to_write(str(log), os.O_APPEND)
    assert os.get_blocking(fd)
    os.close(fd)
    assert mode(log) == 0o600


async def test_sockets(folder: Path) -> None:
    """A folder of ours in which another user could bind, and one of theirs."""
    with listening(folder, "zygote"), pytest.raises(PermissionError, match="another user's"):
        await connect_unix(str(folder), "zygote")
    theirs = folder / "theirs"
    theirs.mkdir()
    give_away(theirs)
    with listening(theirs, "zygote") as listener:
        with pytest.raises(PermissionError, match="another user's"):
            await connect_unix(str(theirs), "zygote")
        assert listener.poll() is None  # nobody came


async def test_our_folder_in_the_session_was_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = folder / "ray_jobs"
    for module in (supervisor_node, zygotes):
        monkeypatch.setattr(module, "work_dir", lambda: str(work_dir))
    attempt = work_dir / "attempts" / "1"
    assert attempt_dir("1") == str(attempt)
    assert (mode(work_dir), mode(attempt.parent)) == (0o700, 0o700)
    logs = JobLogs(str(folder))
    logs.mark_head(str(work_dir))
    assert (work_dir / HEAD_TOKEN_FILE).read_text() == logs.head_token

    work_dir.rename(folder / "away")
    attempt.mkdir(parents=True)
    (attempt / "status.json").write_text('{"state": "exited", "code": 0}')
    (work_dir / HEAD_TOKEN_FILE).write_text("known to others")
    for path in (work_dir, attempt, attempt / "status.json"):
        give_away(path)
    assert read_status(str(attempt)) == {}
    with pytest.raises(PermissionError, match="another user's"):
        attempt_dir("2")
    with pytest.raises(PermissionError, match="another user's"):
        await zygotes.connect_to_zygote("")
    later = JobLogs(str(folder))
    later.mark_head(str(work_dir))
    assert later.head_token != "known to others"


def test_a_shelf_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.manager.log_shelf.KEPT_LOGS", 0)
    (folder / "job-driver-a.log").touch()
    shelf = folder / "finished-jobs"
    shelf.mkdir()
    give_away(shelf)
    with pytest.raises(PermissionError, match="another user's"):
        LogShelf(str(folder))._old()
