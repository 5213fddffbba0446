"""Ctrl-C while a job is followed: real processes, real signals."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.cli.conftest import Spawn
from tests.acceptance.cli.fake_job_server import FakeJobServer


def _read_until(process: subprocess.Popen[bytes], words: str) -> str:
    """Read stderr up to a line with some words: the event that tests wait for."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line.decode())
        if words in seen[-1]:
            return "".join(seen)
    raise AssertionError(f"{words!r} is not in {''.join(seen)!r}")


def _end_of(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=10)
    return process.returncode, stdout.decode(), stderr.decode()


def test_the_first_one_detaches(server: FakeJobServer, spawn: Spawn) -> None:
    server.will_run(b"line\n")
    # Two seconds are for people.
    impatient = "from ray_jobs.cli import interrupts; interrupts.GRACE_S = 0.1"
    process = spawn("submit", "--submission-id", "a", "--", "sleep", "9", before=impatient)
    server.wait_for("tailing")
    process.send_signal(signal.SIGINT)
    code, stdout, stderr = _end_of(process)
    assert (code, stdout) == (130, "line\n")
    assert "Press Ctrl-C again within 0 s to stop job a." in stderr
    assert "ray-jobs stop a" in stderr
    assert "Traceback" not in stderr
    assert server.jobs["a"].details.status == "RUNNING"


def test_the_second_one_stops_the_job_and_follows_its_end(
    server: FakeJobServer, spawn: Spawn
) -> None:
    server.will_run(b"line\n")
    server.on_stop = lambda job_id: server._change(job_id, log=b"bye\n")
    process = spawn("submit", "--submission-id", "a", "--", "sleep", "9")
    server.wait_for("tailing")
    process.send_signal(signal.SIGINT)
    _read_until(process, "Press Ctrl-C again")
    # What is printed meanwhile is not lost, and nothing is printed twice.
    server.change("a", log=b"meanwhile\n")
    process.send_signal(signal.SIGINT)
    server.wait_for("stopping")
    server.end("a", "STOPPED")
    code, stdout, stderr = _end_of(process)
    assert (code, stdout) == (1, "line\nmeanwhile\nbye\n")
    assert "Stopping job a." in stderr
    assert "Job a STOPPED" in stderr


def test_stop_on_interrupt_needs_only_one(server: FakeJobServer, spawn: Spawn) -> None:
    server.will_run(b"line\n")
    process = spawn("submit", "--stop-on-interrupt", "--submission-id", "a", "--", "x")
    server.wait_for("tailing")
    process.send_signal(signal.SIGINT)
    code, _, stderr = _end_of(process)
    assert code == 1
    assert "Press" not in stderr
    assert server.jobs["a"].details.status == "STOPPED"


def test_one_more_detaches_from_a_job_that_will_not_stop(
    server: FakeJobServer, spawn: Spawn
) -> None:
    server.will_run(b"line\n")
    server.on_stop = lambda _job_id: None
    process = spawn("submit", "--stop-on-interrupt", "--submission-id", "a", "--", "x")
    server.wait_for("tailing")
    process.send_signal(signal.SIGINT)
    server.wait_for("stopping")
    process.send_signal(signal.SIGINT)
    assert _end_of(process)[0] == 130


def test_a_job_that_ends_meanwhile_has_its_outcome(server: FakeJobServer, spawn: Spawn) -> None:
    server.will_run(b"line\n")
    process = spawn("submit", "--submission-id", "a", "--", "x")
    server.wait_for("tailing")
    process.send_signal(signal.SIGINT)
    _read_until(process, "Press Ctrl-C again")
    server.end("a", "FAILED", 5)
    assert _end_of(process)[0] == 5


def test_logs_and_wait_leave_the_job_alone_at_once(server: FakeJobServer, spawn: Spawn) -> None:
    server.add_job("a", status="RUNNING", log=b"line\n")
    started = [(spawn("logs", "-f", "a"), "tailing"), (spawn("wait", "a"), "waiting")]
    for process, event in started:
        server.wait_for(event)
        process.send_signal(signal.SIGINT)
        code, _, stderr = _end_of(process)
        assert code == 130
        assert "Press" not in stderr
        assert "ray-jobs stop a" in stderr
    assert server.jobs["a"].details.status == "RUNNING"


def test_one_during_an_upload_says_that_nothing_was_submitted(
    server: FakeJobServer, spawn: Spawn, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("x")
    server.held.add(("PUT", "/api/packages/"))
    process = spawn("submit", "--working-dir", str(tmp_path), "--", "x")
    server.wait_for("held")
    process.send_signal(signal.SIGINT)
    code, stdout, stderr = _end_of(process)
    assert (code, stdout) == (130, "")
    assert stderr == "Error: interrupted. Nothing was submitted.\n"
    assert server.submissions == []


@pytest.mark.parametrize("chosen", [[], ["--submission-id", "mine"]])
def test_one_while_the_submission_is_sent_names_the_job(
    server: FakeJobServer, spawn: Spawn, chosen: list[str]
) -> None:
    server.held.add(("POST", "/api/jobs/"))
    process = spawn("submit", "--no-wait", "--address", server.url, *chosen, "--", "x")
    server.wait_for("held")
    process.send_signal(signal.SIGINT)
    code, stdout, stderr = _end_of(process)
    assert (code, stdout) == (130, "")
    found = re.search(r"may have been submitted as (\S+)\.\n", stderr)
    assert found is not None, stderr
    assert found[1] == chosen[-1] if chosen else found[1].startswith("raysubmit_")
    assert f"Stop it with: ray-jobs stop {found[1]} --address {server.url}\n" in stderr
    assert "Traceback" not in stderr


def test_an_ignored_ctrl_c_stays_ignored(server: FakeJobServer, spawn: Spawn) -> None:
    server.will_run(b"line\n")
    # As in `ray-jobs submit ... &` in a script.
    process = spawn("submit", "--submission-id", "a", "--", "x", sigint=signal.SIG_IGN)
    server.wait_for("tailing")
    process.send_signal(signal.SIGINT)
    server.end("a", "SUCCEEDED")
    assert _end_of(process)[0] == 0
