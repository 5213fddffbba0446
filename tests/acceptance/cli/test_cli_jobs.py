"""The commands about jobs that exist, against our server and Ray's own."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.cli.conftest import Invoke
from tests.acceptance.cli.fake_job_server import FakeJobServer, driver, now_ms


def test_status_says_what_is_known(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job(
        "a",
        status="FAILED",
        entrypoint="python x.py",
        message="It broke:\nbadly",
        driver_exit_code=3,
        metadata={"team": "t"},
        start_time=1_000,
        end_time=66_000,
        entrypoint_num_cpus=2,
    )
    result = invoke("status", "a")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "Job:         a" in lines
    assert "Status:      FAILED" in lines
    assert "Exit code:   3" in lines
    assert "Message:     It broke:" in lines
    assert "             badly" in lines
    assert "Duration:    1m 5s" in lines
    assert 'Reserved:    {"num_cpus": 2.0}' in lines
    assert not any(line.startswith("Runtime env") for line in lines)


def test_status_says_what_a_pending_job_waits_for(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", pending_reason="waiting for 8 CPUs")
    assert "Waits for:   waiting for 8 CPUs" in invoke("status", "a").stdout


def test_status_as_json(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="RUNNING", entrypoint="echo ü")
    found = json.loads(invoke("status", "--format", "json", "a").stdout)
    assert (found["submission_id"], found["status"]) == ("a", "RUNNING")
    assert found["entrypoint"] == "echo ü"


def test_an_unknown_job_is_an_error_everywhere(invoke: Invoke) -> None:
    for command in ("status", "logs", "wait", "stop", "delete"):
        result = invoke(command, "nope")
        assert result.exit_code == 1, command
        assert result.stderr.startswith("Error: "), command
        assert "does not exist" in result.stderr, command
        assert result.stdout == "", command


def test_list_is_newest_first_and_plain(server: FakeJobServer, invoke: Invoke) -> None:
    now = now_ms()
    server.add_job("old", status="SUCCEEDED", start_time=now - 7_400_000, end_time=now - 7_340_000)
    server.add_job("new", entrypoint="echo\n a\tb")
    server.add_job(
        "02000000", type="DRIVER", status="RUNNING", entrypoint="", start_time=now - 5000
    )
    result = invoke("list")
    assert result.exit_code == 0, result.output
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert rows[0] == ["ID", "STATUS", "SUBMITTED", "DURATION", "ENTRYPOINT"]
    assert [row[0] for row in rows[1:]] == ["new", "02000000", "old"]
    assert rows[1][4] == "echo a b"
    assert rows[2][4] == "(driver)"
    assert rows[3] == ["old", "SUCCEEDED", "2h 3m ago", "1m 0s", "true"]


def _three_jobs(server: FakeJobServer) -> None:
    for index, status in enumerate(("RUNNING", "FAILED", "RUNNING")):
        server.add_job(f"j{index}", status=status, start_time=1000 + index)


def test_list_filters_at_our_server(server: FakeJobServer, invoke: Invoke) -> None:
    _three_jobs(server)
    found = json.loads(invoke("list", "--format", "json", "--status", "running").stdout)
    assert [job["submission_id"] for job in found] == ["j2", "j0"]
    found = json.loads(invoke("list", "--format", "json", "--limit", "1").stdout)
    assert [job["submission_id"] for job in found] == ["j2"]
    found = invoke("list", "--format", "json", "--status", "FAILED", "--status", "RUNNING")
    assert len(json.loads(found.stdout)) == 3


def test_list_filters_by_itself_at_rays_own_server(
    stock_server: FakeJobServer, invoke: Invoke
) -> None:
    _three_jobs(stock_server)
    address = ("--address", stock_server.url)
    found = invoke("list", *address, "--format", "json", "--status", "running", "--limit", "1")
    assert found.exit_code == 0, found.output
    assert [job["submission_id"] for job in json.loads(found.stdout)] == ["j2"]
    assert invoke("list", "--status", "WRONG").exit_code == 2


def test_an_empty_list(invoke: Invoke) -> None:
    result = invoke("list")
    assert result.stdout == "ID\tSTATUS\tSUBMITTED\tDURATION\tENTRYPOINT\n"
    assert invoke("list", "--format", "json").stdout == "[]\n"


def test_logs_are_raw(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="SUCCEEDED", log="1\n{2}\n%s\nü no newline".encode())
    assert invoke("logs", "a").stdout == "1\n{2}\n%s\nü no newline"
    assert invoke("logs", "--tail", "2", "a").stdout == "%s\nü no newline"
    assert invoke("logs", "--tail", "0", "a").stdout == ""


def test_followed_logs_end_with_0_however_the_job_ended(
    server: FakeJobServer, invoke: Invoke
) -> None:
    server.add_job("a", status="FAILED", driver_exit_code=4, log=b"1\n2\n3\n")
    result = invoke("logs", "-f", "a")
    assert (result.exit_code, result.stdout) == (0, "1\n2\n3\n")
    assert "Job a FAILED (exit code 4)" in result.stderr
    assert invoke("logs", "--follow", "--tail", "1", "a").stdout == "3\n"
    # No byte before it was sent.
    assert ("GET", "/api/jobs/a/logs") not in server.requests


def test_the_end_of_a_log_of_rays_server(stock_server: FakeJobServer, invoke: Invoke) -> None:
    stock_server.add_job("a", status="SUCCEEDED", log=b"1\n2\n3\n")
    where = ("--address", stock_server.url)
    assert invoke("logs", *where, "--tail", "2", "a").stdout == "2\n3\n"
    assert invoke("logs", *where, "-f", "--tail", "2", "a").stdout == "2\n3\n"


@pytest.mark.parametrize("stock", [False, True])
def test_wait_exits_as_the_job_does(
    server: FakeJobServer, stock_server: FakeJobServer, invoke: Invoke, stock: bool
) -> None:
    where = stock_server if stock else server
    where.add_job("a", status="FAILED", driver_exit_code=4, message="because")
    result = invoke("wait", "--address", where.url, "a")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "because" in result.stderr


def test_wait_gives_up_after_its_timeout(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="RUNNING")
    result = invoke("wait", "--timeout", "0.05", "a")
    assert result.exit_code == 124
    assert "Error: Job a has not ended within 0.05 s" in result.stderr
    assert "Hint: " in result.stderr
    assert invoke("wait", "--timeout", "nan", "a").exit_code == 2
    assert invoke("wait", "--timeout", "-1", "a").exit_code == 2


def test_stop_waits_for_the_end(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="RUNNING")
    result = invoke("stop", "a")
    assert (result.exit_code, result.stdout) == (0, "Job a stopped.\n")
    again = invoke("stop", "a")
    assert (again.exit_code, again.stdout) == (0, "Job a had ended already: STOPPED.\n")


def test_stop_without_waiting(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="RUNNING")
    server.on_stop = lambda _job_id: None
    result = invoke("stop", "--no-wait", "a")
    assert (result.exit_code, result.stdout) == (0, "Job a is being stopped.\n")


def test_stop_says_when_the_job_came_to_its_own_end(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="RUNNING")
    server.on_stop = lambda job_id: server._end(job_id, "SUCCEEDED", 0)
    assert invoke("stop", "a").stdout == "Job a ended by itself: SUCCEEDED.\n"


def test_delete_goes_on_after_one_that_fails(server: FakeJobServer, invoke: Invoke) -> None:
    for job_id, status in (("a", "FAILED"), ("b", "RUNNING"), ("c", "STOPPED")):
        server.add_job(job_id, status=status)
    result = invoke("delete", "a", "b", "c")
    assert result.exit_code == 1
    assert result.stdout == "Job a deleted.\nJob c deleted.\n"
    assert "non-terminal" in result.stderr
    assert set(server.jobs) == {"b"}
    assert invoke("delete").exit_code == 2


def test_driver_of_a_job_is_shown(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a", status="RUNNING", job_id="01000000", driver_info=driver())
    assert "01000000 (driver of the job)" in invoke("status", "a").stdout


def test_rays_own_server_is_enough_for_everything_else(
    stock_server: FakeJobServer, invoke: Invoke
) -> None:
    address = ("--address", stock_server.url)
    stock_server.will_end("FAILED", 5, log=b"out\n")
    result = invoke("submit", *address, "--submission-id", "a", "--", "false")
    assert (result.exit_code, result.stdout) == (5, "out\n")
    assert "Status:      FAILED" in invoke("status", *address, "a").stdout
    assert invoke("logs", *address, "a").stdout == "out\n"
    assert "had ended already" in invoke("stop", *address, "a").stdout
    assert invoke("delete", *address, "a").exit_code == 0


def test_wait_says_when_the_server_is_silent(
    server: FakeJobServer, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.client.waiting.GRACE_S", 0.1)
    server.add_job("a", status="RUNNING")
    server.held.add(("GET", "/api/"))
    result = invoke("wait", "--timeout", "0.1", "a")
    assert result.exit_code == 124
    assert "has not ended within 0.1 s, as far as known: The server didn't answer" in result.stderr
    assert "It goes on" not in result.stderr
