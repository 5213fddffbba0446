"""The parts of the command line that are functions."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import dataclass

import pytest

from ray_jobs.cli.options import Connection
from ray_jobs.cli.render import age_of, duration_of, format_seconds
from ray_jobs.cli.terminal import PATIENCE_S, Spinner, UploadProgress
from ray_jobs.models import JobInfo, JobStatus, JobType


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.25, "0.2s"),
        (59.9, "59s"),
        (60, "1m 0s"),
        (3600, "1h 0m"),
        (7384, "2h 3m"),
        (200_000, "2d 7h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def _job(status: str, start: int | None, end: int | None = None) -> JobInfo:
    return JobInfo(
        type=JobType.SUBMISSION,
        status=JobStatus(status),
        entrypoint="x",
        start_time=start,
        end_time=end,
    )


def test_times_of_jobs() -> None:
    assert age_of(_job("RUNNING", None), 10_000) == "-"
    assert age_of(_job("RUNNING", 12_000), 10_000) == "0.0s ago"
    assert duration_of(_job("PENDING", 1000), 10_000) == "-"
    assert duration_of(_job("RUNNING", 1000), 10_000) == "9s"
    assert duration_of(_job("FAILED", 1000, 3000), 10_000) == "2s"


def test_commands_to_show_are_quoted() -> None:
    assert Connection(None, True, None).command("stop", "a b") == "ray-jobs stop 'a b'"


@dataclass
class Step:
    stage: str
    path: str
    done_bytes: int
    total_bytes: int


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, drawn in ((io.StringIO(), False), (FakeTerminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with UploadProgress() as progress:
            progress._started = time.monotonic() - PATIENCE_S
            progress(Step("zipping", "/some/folder/", 10, 100))
            progress(Step("uploading", "/some/folder", 50, 100))
        assert ("Zipping folder" in stream.getvalue()) is drawn


def test_quick_work_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with UploadProgress() as progress:
        progress(Step("zipping", "/some/folder", 10, 100))
    with Spinner("waiting"):
        pass
    assert stream.getvalue() == ""
