"""The state machine of a job. Pure: a transition takes a record and gives a new one, or None.

    PENDING ──▶ RUNNING ──▶ SUCCEEDED | FAILED | STOPPED
       └──────────────────▶ FAILED | STOPPED

A RUNNING job goes back to PENDING in one case: its supervisor was killed in the moment between the
record and the start, and its node has made sure that the entrypoint will not be started.

None means that the transition doesn't apply: a terminal state is final, and a job that was stopped
while it started doesn't start.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import JobRecord, default_message

LOG_MAY_BE_CUT_OFF = (
    "The disk under its log was full, or failed, when it ended, or its node was gone before all of"
    " its log was copied: some of what it wrote may be missing there."
)
#: What is kept of a message, in characters: its beginning, and its end, where an installer says
#: what was wrong. All records must be small enough to be read together. The last 20,000 characters
#: that a failed entrypoint wrote are never cut.
MESSAGE_START_CHARACTERS, MESSAGE_END_CHARACTERS = 4_000, 20_000


def running(
    record: JobRecord,
    *,
    node_id: str,
    agent_address: str | None,
    on_head: bool,
    log_base_bytes: int,
    holds_env: bool = False,
) -> JobRecord | None:
    """The job is about to be started on a node."""
    if record.status is not JobStatus.PENDING:
        return None
    return msgspec.structs.replace(
        record,
        status=JobStatus.RUNNING,
        driver_node_id=node_id,
        driver_agent_http_address=agent_address,
        on_head=on_head,
        log_base_bytes=log_base_bytes,
        holds_env=holds_env,
    )


def not_started(record: JobRecord, attempt: str) -> JobRecord | None:
    """The job's node knows for sure that its attempt was never started: another one may be."""
    if record.status is not JobStatus.RUNNING or record.stop_requested:
        return None
    return msgspec.structs.replace(
        record,
        status=JobStatus.PENDING,
        attempt=attempt,
        driver_node_id=None,
        driver_agent_http_address=None,
        holds_env=False,
    )


def stop_requested(record: JobRecord, now_ms: int) -> JobRecord | None:
    """A user asked for the end. A job that hasn't started ends at once."""
    if record.status is JobStatus.PENDING:
        return finished(record, status=JobStatus.STOPPED, now_ms=now_ms)
    if record.status.is_terminal() or record.stop_requested:
        return None
    return msgspec.structs.replace(record, stop_requested=True)


def finished(
    record: JobRecord,
    *,
    status: JobStatus,
    now_ms: int,
    message: str | None = None,
    error_type: JobErrorType | None = None,
    exit_code: int | None = None,
) -> JobRecord | None:
    """The job reached its end."""
    if record.status.is_terminal():
        return None
    return msgspec.structs.replace(
        record,
        status=status,
        message=shortened(message) if message else message,
        error_type=error_type.value if error_type else None,
        driver_exit_code=exit_code,
        end_time=max(now_ms, record.start_time or 0),
    )


def shortened(message: str) -> str:
    """Return a message without its middle if it is too long."""
    left_out = len(message) - MESSAGE_START_CHARACTERS - MESSAGE_END_CHARACTERS
    if left_out <= 0:
        return message
    start, end = message[:MESSAGE_START_CHARACTERS], message[-MESSAGE_END_CHARACTERS:]
    return f"{start}\n[... {left_out:,} characters left out ...]\n{end}"


def failed(
    record: JobRecord, *, now_ms: int, message: str, error_type: JobErrorType
) -> JobRecord | None:
    """The job was lost, or never came to run. Who asked for its end has it."""
    if record.stop_requested:
        return finished(record, status=JobStatus.STOPPED, now_ms=now_ms)
    return finished(
        record, status=JobStatus.FAILED, now_ms=now_ms, message=message, error_type=error_type
    )


def concluded(record: JobRecord, outcome: dict[str, Any], now_ms: int) -> JobRecord | None:
    """The keeper reported how the attempt ended (see keeper.py for the states)."""
    ended = _ended(record, outcome, now_ms)
    if ended is not None and outcome.get("log_disk_full"):
        message = f"{ended.message or default_message(ended)}\n{LOG_MAY_BE_CUT_OFF}"
        ended = msgspec.structs.replace(ended, message=message, log_may_be_cut_off=True)
    return ended


def _ended(record: JobRecord, outcome: dict[str, Any], now_ms: int) -> JobRecord | None:
    state = outcome["state"]
    if state == "failed_to_start":
        return finished(
            record,
            status=JobStatus.FAILED,
            now_ms=now_ms,
            message=f"The entrypoint could not be started: {outcome.get('error')}",
            error_type=JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR,
        )
    if state != "exited":
        reason = outcome.get("error") or f"its keeper reported {state!r}"
        return failed(
            record,
            now_ms=now_ms,
            message=f"The job was lost: {reason}",
            error_type=JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
        )
    end_ms = ended_ms(record, outcome, now_ms)
    code = outcome.get("code")
    if outcome.get("node_died"):
        return failed(
            record,
            now_ms=end_ms,
            message="The node on which the job ran went down.",
            error_type=JobErrorType.JOB_SUPERVISOR_ACTOR_DIED,
        )
    if outcome.get("stopped"):
        return finished(record, status=JobStatus.STOPPED, now_ms=end_ms)
    if code == 0:
        return finished(record, status=JobStatus.SUCCEEDED, now_ms=end_ms, exit_code=0)
    return finished(
        record,
        status=JobStatus.FAILED,
        now_ms=end_ms,
        message=failure_message(code, outcome.get("log_tail") or ""),
        error_type=JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR,
        exit_code=code,
    )


def ended_ms(record: JobRecord, outcome: dict[str, Any], now_ms: int) -> int:
    """Return when an attempt ended, by its report (see `times.by_our_clocks`).

    By the clock since its boot of the machine where it was submitted: the wall clock may have been
    set meanwhile.
    """
    on_same_clock = record.boot_id and outcome.get("boot_id") == record.boot_id
    if on_same_clock and record.start_time is not None:
        return int(record.start_time + outcome["ended_boot_ms"] - record.submitted_boot_ms)
    return int(outcome.get("ended_at_ms") or now_ms)


def failure_message(code: int | None, log_tail: str) -> str:
    """Return the message of a failed entrypoint, in the words that Ray's users know."""
    message = f"Job entrypoint command failed with exit code {code}"
    if log_tail:
        return f"{message}, last available logs (truncated to 20,000 chars):\n{log_tail}"
    return f"{message}. No logs available."
