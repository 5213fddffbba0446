"""The watcher of Ray's dashboard, with sleeping processes in the places of dashboard and raylet."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_jobs import dashboard_watch
from ray_jobs.dashboard_note import read_note, write_note
from ray_jobs.dashboard_watch import DashboardWatchError, find_dashboard_or_note, start
from ray_jobs.handover import runs
from ray_jobs.node_processes import Process, dashboards, raylets
from tests.waiting import wait_until

WATCHING = """
import sys
from ray_jobs import dashboard_watch as watching
watching.CHECK_S = 0.02
watching.SETTLING_S = 0.05
{before}
watching.watch(sys.argv[1])
"""
#: No process can be started the first two times.
REFUSING = """
start, attempts = watching.start, []
def refusing(dashboard):
    attempts.append(dashboard)
    if len(attempts) <= 2:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return start(dashboard)
watching.start = refusing
"""


class Node:
    """A raylet and a dashboard: processes that do nothing, with their command lines."""

    def __init__(self, folder: Path) -> None:
        self.session = folder / "session_1"
        self.session.mkdir()
        self.address = f"{folder}:6379"  # of this test alone
        self.program = folder / "ray" / "dashboard" / "dashboard.py"
        self.program.parent.mkdir(parents=True)
        self.program.write_text("import time\ntime.sleep(1000)\n")
        self.working_folder = folder / "wd"
        self.working_folder.mkdir()
        self.watchers: list[subprocess.Popen[str]] = []
        options = [f"--session_dir={self.session}", f"--gcs-address={self.address}"]
        self.raylet = subprocess.Popen(
            ["raylet", "-c", "import time; time.sleep(1000)", *options], executable=sys.executable
        )

    def start_dashboard(self) -> subprocess.Popen[bytes]:
        options = [f"--session-dir={self.session}", f"--gcs-address={self.address}"]
        return subprocess.Popen(
            [sys.executable, str(self.program), *options],
            cwd=self.working_folder,
            env={**os.environ, "MINE": "\udcff1"},
        )

    def watch(self, before: str = "", stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        program = WATCHING.format(before=before)
        self.watchers.append(
            subprocess.Popen(
                [sys.executable, "-c", program, self.address], stderr=stderr, text=True
            )
        )
        return self.watchers[-1]

    def running(self) -> list[int]:
        return [each.pid for each in dashboards(self.address)]

    def until_another(self, pid: int) -> Process:
        wait_until(lambda: self.running() not in ([], [pid]), "another dashboard")
        [found] = dashboards(self.address)
        return found

    def stop(self) -> None:
        for watcher in self.watchers:
            watcher.kill()
            watcher.communicate()
        self.raylet.kill()
        self.raylet.wait()
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    wait_until(lambda: bool(raylets(node.address)), "the raylet")
    yield node
    node.stop()


@pytest.fixture
def dashboard(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    with node.start_dashboard() as process:
        wait_until(lambda: node.running() == [process.pid], "the dashboard")
        yield process
        process.kill()


def until_said(watcher: subprocess.Popen[str], words: str) -> None:
    assert watcher.stderr is not None
    for line in watcher.stderr:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_one_that_dies_is_started_as_it_was(node: Node, dashboard: subprocess.Popen[bytes]) -> None:
    until_said(node.watch(), "watching")
    [before] = dashboards(node.address)
    kill(dashboard)
    after = node.until_another(dashboard.pid)
    assert after._replace(pid=0) == before._replace(pid=0)
    assert after.env["MINE"] == "\udcff1"


def test_it_ends_with_the_raylet(node: Node, dashboard: subprocess.Popen[bytes]) -> None:
    watcher = node.watch()
    until_said(watcher, "watching")
    kill(dashboard)
    pid = node.until_another(dashboard.pid).pid
    node.raylet.kill()  # nobody looks at its exit status yet
    assert watcher.wait(5) == 0
    assert not runs(pid)


def test_none_is_started_for_a_cluster_that_is_stopped(
    node: Node, dashboard: subprocess.Popen[bytes]
) -> None:
    """Whichever of its processes goes first."""
    watcher = node.watch("watching.SETTLING_S = 1.0")
    until_said(watcher, "watching")
    kill(dashboard)
    node.raylet.kill()
    _, said = watcher.communicate(timeout=5)
    assert watcher.returncode == 0
    assert "started again" not in said
    assert node.running() == []


def test_one_that_died_with_its_watcher(node: Node, dashboard: subprocess.Popen[bytes]) -> None:
    watcher = node.watch()
    until_said(watcher, "watching")
    wait_until(lambda: read_note(str(node.session)) is not None, "the note")
    watcher.kill()
    kill(dashboard)
    node.watch()
    assert node.until_another(dashboard.pid).folder == str(node.working_folder)


def test_one_that_was_never_watched(node: Node) -> None:
    with pytest.raises(DashboardWatchError, match="no single dashboard"):
        find_dashboard_or_note(node.address)


def test_one_that_somebody_else_starts_is_watched(
    node: Node, dashboard: subprocess.Popen[bytes]
) -> None:
    watcher = node.watch()
    until_said(watcher, "watching")
    with node.start_dashboard() as other:
        wait_until(lambda: len(node.running()) == 2, "the other one")
        kill(dashboard)
        until_said(watcher, f"watching the dashboard (pid {other.pid})")
        assert node.running() == [other.pid]
        other.kill()
    assert node.until_another(other.pid)


def test_two_watchers_start_one(node: Node, dashboard: subprocess.Popen[bytes]) -> None:
    watchers = [node.watch(), node.watch()]
    for watcher in watchers:
        until_said(watcher, "watching")
    pid = dashboard.pid
    kill(dashboard)
    for _ in range(5):
        pid = node.until_another(pid).pid
        for watcher in watchers:  # either says which one it has now
            until_said(watcher, f"(pid {pid})")
        assert node.running() == [pid]
        os.kill(pid, signal.SIGKILL)


def test_what_the_system_refuses_for_a_while_is_tried_again(
    node: Node, dashboard: subprocess.Popen[bytes]
) -> None:
    watcher = node.watch(REFUSING)
    until_said(watcher, "watching")
    kill(dashboard)
    for _ in range(2):
        until_said(watcher, "can't be started: [Errno 11]")
    node.until_another(dashboard.pid)


def test_a_watcher_whose_words_cannot_be_written_goes_on(
    node: Node, dashboard: subprocess.Popen[bytes]
) -> None:
    with open("/dev/full", "w") as full:
        node.watch(stderr=full.fileno())
    wait_until(lambda: read_note(str(node.session)) is not None, "the note")
    kill(dashboard)
    node.until_another(dashboard.pid)


def test_a_working_folder_that_was_deleted(node: Node, dashboard: subprocess.Popen[bytes]) -> None:
    shutil.rmtree(node.working_folder)
    [found] = dashboards(node.address)
    assert found.folder.endswith(" (deleted)")
    kill(dashboard)
    with start(found) as again:
        wait_until(lambda: node.running() == [again.pid], "it runs")
        assert os.readlink(f"/proc/{again.pid}/cwd") == "/"
        again.kill()


@pytest.fixture
def noted(tmp_path: Path) -> Process:
    return Process(0, ["python", f"--session-dir={tmp_path}"], {"A": "\udcff"}, "/tmp")


def test_a_note_is_for_its_user_alone(tmp_path: Path, noted: Process) -> None:
    write_note(noted)
    assert read_note(str(tmp_path)) == noted
    [note] = (tmp_path / "ray_jobs").iterdir()
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert stat.S_IMODE(note.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("spoil", [Path.unlink, lambda note: note.write_text("[1, ")])
def test_a_note_that_cannot_be_read(
    tmp_path: Path, noted: Process, spoil: Callable[[Path], object]
) -> None:
    write_note(noted)
    spoil(tmp_path / "ray_jobs" / "dashboard.json")
    assert read_note(str(tmp_path)) is None


def test_nothing_is_noted_or_believed_of_another_user(
    tmp_path: Path, noted: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_note(noted)
    monkeypatch.setattr("ray_jobs.dashboard_note.os.geteuid", lambda: os.getuid() + 1)
    assert read_note(str(tmp_path)) is None
    with pytest.raises(PermissionError):
        write_note(noted)


def test_there_may_be_just_one() -> None:
    one = Process(1, ["--gcs-address=a:1"], {}, "/")
    assert dashboard_watch.the_only([one]) is one
    with pytest.raises(DashboardWatchError, match="a:1, b:2"):
        dashboard_watch.the_only([one, Process(2, ["--gcs-address=b:2"], {}, "/")])
