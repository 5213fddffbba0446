"""The state machine, by every state and every transition."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.manager import transitions
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import JobRecord, default_message
from ray_jobs.supervisor.logs import TAIL_CHARS


def record(status: JobStatus, **fields: Any) -> JobRecord:
    fields = {"submission_id": "a", "entrypoint": "true", "start_time": 100, **fields}
    return JobRecord(status=status, **fields)


@pytest.mark.parametrize("status", list(JobStatus))
def test_running_only_from_pending(status: JobStatus) -> None:
    changed = transitions.running(
        record(status), node_id="n", agent_address="http://a", on_head=True, log_base_bytes=3
    )
    if status is JobStatus.PENDING:
        assert changed is not None
        assert changed.status is JobStatus.RUNNING
        assert (changed.driver_node_id, changed.driver_agent_http_address) == ("n", "http://a")
        assert changed.log_base_bytes == 3
    else:
        assert changed is None


def test_a_long_message_is_kept_in_part() -> None:
    """An installer may say megabytes in one line. Of a log's end, all is kept."""
    said = "b" * 5_000 + "x" * 1_000_000 + "e" * 30_000
    found = transitions.failed(
        record(JobStatus.PENDING),
        now_ms=200,
        message=said,
        error_type=JobErrorType.RUNTIME_ENV_SETUP_FAILURE,
    )
    assert found is not None
    start, notice, end = (found.message or "").split("\n")
    assert (start, end) == ("b" * 4_000, "e" * 20_000)
    assert notice == "[... 1,011,000 characters left out ...]"
    tail = "x" * TAIL_CHARS
    ended = transitions.concluded(
        record(JobStatus.RUNNING), {"state": "exited", "code": 3, "log_tail": tail}, 200
    )
    assert ended is not None
    assert str(ended.message).endswith(f"chars):\n{tail}")


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED])
def test_terminal_is_final(status: JobStatus) -> None:
    ended = record(status)
    assert transitions.stop_requested(ended, 200) is None
    assert transitions.concluded(ended, {"state": "exited", "code": 0}, 200) is None
    assert transitions.finished(ended, status=JobStatus.FAILED, now_ms=200) is None


def test_pending_job_is_stopped_at_once() -> None:
    changed = transitions.stop_requested(record(JobStatus.PENDING), 200)
    assert changed is not None
    assert (changed.status, changed.end_time) == (JobStatus.STOPPED, 200)


def test_running_job_is_asked_to_stop_once() -> None:
    asked = transitions.stop_requested(record(JobStatus.RUNNING), 200)
    assert asked is not None
    assert asked.status is JobStatus.RUNNING
    assert asked.stop_requested is True
    assert transitions.stop_requested(asked, 300) is None


@pytest.mark.parametrize(
    ("outcome", "status", "code", "error_type", "words"),
    [
        ({"state": "exited", "code": 0}, JobStatus.SUCCEEDED, 0, None, "finished successfully"),
        (
            {"state": "exited", "code": 3, "log_tail": "boom\n"},
            JobStatus.FAILED,
            3,
            JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR,
            "failed with exit code 3, last available logs (truncated to 20,000 chars):\nboom",
        ),
        (
            {"state": "exited", "code": -9},
            JobStatus.FAILED,
            -9,
            JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR,
            "failed with exit code -9. No logs available.",
        ),
        (
            {"state": "exited", "code": -15, "stopped": True},
            JobStatus.STOPPED,
            None,
            None,
            "intentionally stopped",
        ),
        (
            {"state": "exited", "code": -9, "node_died": True},
            JobStatus.FAILED,
            None,
            JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
            "node",
        ),
        (
            {"state": "failed_to_start", "error": "[Errno 13] Permission denied"},
            JobStatus.FAILED,
            None,
            JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR,
            "Permission denied",
        ),
        (
            {"state": "lost", "error": "The job's keeper process was killed."},
            JobStatus.FAILED,
            None,
            JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
            "keeper process was killed",
        ),
    ],
)
def test_conclusions(
    outcome: dict[str, Any],
    status: JobStatus,
    code: int | None,
    error_type: JobErrorType | None,
    words: str,
) -> None:
    changed = transitions.concluded(record(JobStatus.RUNNING), outcome, 500)
    assert changed is not None
    assert (changed.status, changed.driver_exit_code) == (status, code)
    assert changed.error_type == (error_type.value if error_type else None)
    assert words in (changed.message or default_message(changed))
    assert changed.end_time == 500


def test_attempt_that_was_never_started_is_followed_by_another() -> None:
    running = record(JobStatus.RUNNING, attempt="first", driver_node_id="n")
    again = transitions.not_started(running, "second")
    assert again is not None
    assert (again.status, again.attempt, again.driver_node_id) == (
        JobStatus.PENDING,
        "second",
        None,
    )
    stopping = record(JobStatus.RUNNING, attempt="first", stop_requested=True)
    assert transitions.not_started(stopping, "second") is None
    assert transitions.not_started(record(JobStatus.SUCCEEDED), "second") is None


def test_who_asked_for_the_end_of_a_lost_job_has_it() -> None:
    asked = record(JobStatus.RUNNING, stop_requested=True)
    changed = transitions.concluded(asked, {"state": "lost", "error": "gone"}, 500)
    assert changed is not None
    assert changed.status is JobStatus.STOPPED


def test_end_is_never_before_start() -> None:
    changed = transitions.finished(record(JobStatus.RUNNING), status=JobStatus.FAILED, now_ms=1)
    assert changed is not None
    assert changed.end_time == 100
