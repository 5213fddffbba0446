"""Both ways to start an entrypoint, from a process that ignores and blocks signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.keeper.entrypoint import fork, spawn, start_entrypoint
from ray_jobs.keeper.processes import oom_score

Way = Callable[[dict[str, Any], int], int]


@pytest.fixture(autouse=True)
def own_folder() -> Iterator[None]:
    """Give back the working directory: a keeper, which starts one entrypoint, leaves its own."""
    before = os.getcwd()
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def signals_as_in_a_worker() -> Iterator[None]:
    previous = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGQUIT, previous)


def order(*argv: str, cwd: str = "/") -> dict[str, Any]:
    return {"argv": list(argv), "env": {"A": "1"}, "cwd": cwd, "niceness": 0}


@pytest.mark.parametrize("way", [spawn, fork])
def test_session_signals_and_descriptors(way: Way, tmp_path: Path) -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; echo $A; cat; echo to stderr >&2"
    with (tmp_path / "log").open("wb") as log:
        pid = way(order("/bin/sh", "-c", script), log.fileno())
        assert os.getsid(pid) == pid
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    blocked, ignored, *rest = (tmp_path / "log").read_text().splitlines()
    assert int(blocked.split()[1], 16) == 0
    # The C library keeps the first two real-time signals to itself.
    its_own = sum(1 << number - 1 for number in range(32, signal.SIGRTMIN))
    assert int(ignored.split()[1], 16) & ~its_own == 0
    assert rest == ["1", "to stderr"]


@pytest.mark.parametrize("way", [spawn, fork])
def test_what_cannot_be_executed(way: Way, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, pytest.raises(FileNotFoundError):
        way(order("/no/such/program"), log.fileno())


def test_errors_name_what_failed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        with pytest.raises(OSError, match=r"\(/no/such/program\)"):
            start_entrypoint(order("/no/such/program"), log.fileno())
        with pytest.raises(OSError, match=r"working directory /no/such/folder"):
            start_entrypoint(order("/bin/true", cwd="/no/such/folder"), log.fileno())


def test_python_that_cannot_spawn_into_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> int:
        raise NotImplementedError

    monkeypatch.setattr(os, "posix_spawn", refuse)
    with (tmp_path / "log").open("wb") as log:
        pid = start_entrypoint(order("/bin/pwd", cwd=str(tmp_path)), log.fileno())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "log").read_text() == f"{tmp_path}\n"


def test_the_kernel_kills_the_job_before_its_keeper(tmp_path: Path) -> None:
    own = oom_score()
    assert own is not None
    wanted = 1000
    script = "cat /proc/self/oom_score_adj"
    with (tmp_path / "log").open("wb") as log:
        for score in ({"oom_score": wanted}, {}):  # earlier versions order none
            pid = start_entrypoint({**order("/bin/sh", "-c", script), **score}, log.fileno())
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert oom_score() == own
    assert (tmp_path / "log").read_text().split() == [str(wanted), str(own)]
