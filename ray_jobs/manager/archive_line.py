"""What the archive holds of a job: one line of JSON. Pure."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import msgspec

from ray_jobs.records import JobRecord, as_text, to_details
from ray_jobs.scrubbing import redact

_encode = msgspec.json.Encoder().encode


@dataclasses.dataclass(frozen=True)
class FoundLog:
    """The log of a job, as it was found when the job left."""

    bytes: int
    #: Its text had been removed before, to bound the logs of all jobs.
    was_removed: bool = False


def archived_log(record: JobRecord) -> str:
    """Return where the archive has the log of a job.

    By its attempt, which is unique, so an id that is used again overwrites nothing; and always the
    same, so a job that is archived a second time after a crash has it in the same place.
    """
    hour = time.strftime("%Y-%m-%dT%H", time.gmtime((record.end_time or 0) / 1000))
    return f"logs/{hour}/{record.attempt}.log"


def archive_line(record: JobRecord, log: FoundLog | None, now_ms: int) -> bytes:
    """Return a job as the archive's line, without secrets, with its newline."""
    details = to_details(record, None)
    redact(details)
    line: dict[str, Any] = msgspec.to_builtins(details)
    # Numbers of a change stream that has ended, and reasons of jobs that wait.
    for name in ("revision", "pending_reason"):
        line.pop(name, None)
    line["attempt"] = record.attempt
    line["archived_at"] = now_ms
    line["log"] = None
    if log is not None:
        line["log"] = {
            "name": archived_log(record) if log.bytes else None,
            "bytes": log.bytes,
            "removed": log.was_removed,
        }
    try:
        return _encode(line) + b"\n"
    except UnicodeEncodeError:  # the record in the store holds replacements too
        return _encode(as_text(line)) + b"\n"
