"""The job record as the manager keeps it, and the change stream that the HTTP face follows.

Pure: no ray, no I/O. Records are frozen; a transition makes a new one (`manager/transitions.py`).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ray_jobs.models import DriverInfo, JobDetails, JobInfo, JobStatus, JobType


class JobRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Everything that is known of one submitted job. Its JSON is the value in the KV."""

    submission_id: str
    entrypoint: str
    status: JobStatus
    message: str | None = None
    error_type: str | None = None
    start_time: int | None = None  #: ms since epoch, when it was submitted (as in Ray)
    end_time: int | None = None  #: ms since epoch
    metadata: dict[str, str] | None = None
    runtime_env: dict[str, Any] | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None  #: bytes
    entrypoint_resources: dict[str, float] | None = None
    entrypoint_label_selector: dict[str, str] | None = None
    max_log_bytes: int | None = None
    driver_agent_http_address: str | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None

    #: Position in the change stream of the manager's life in which it was written.
    revision: int = 0
    #: When it was submitted by the clock of the head since its boot, and which boot that was. The
    #: wall clock may be set meanwhile.
    submitted_boot_ms: int = 0
    boot_id: str = ""
    #: Names the one attempt to run the entrypoint, on the node and in the supervisor.
    attempt: str = ""
    #: Names the request that created the job, so that a repeated one is recognised.
    request_key: str = ""
    #: A user asked for the end while the job ran.
    stop_requested: bool = False
    #: The job's log is written on the head node, or on a disk that it shares. Otherwise it is
    #: copied to the head while the job runs.
    on_head: bool = True
    #: Bytes of the head's log file that were there before the copy of a worker node's began.
    log_base_bytes: int = 0
    #: Its disk was full at its end, or the copy of its log was given up: some may be missing there.
    log_may_be_cut_off: bool = False
    #: Ray's agent on the head holds the job's environment, and is told when the job has ended.
    holds_env: bool = False
    #: Written by Ray's own job server: listed and deletable, but not ours to run.
    foreign: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it is ours to lead to its end."""
        return not self.foreign and not self.status.is_terminal()

    def reserves_resources(self) -> bool:
        """Return whether the entrypoint is placed by Ray rather than on the head node."""
        return bool(
            self.entrypoint_num_cpus
            or self.entrypoint_num_gpus
            or self.entrypoint_memory
            or self.entrypoint_resources
            or self.entrypoint_label_selector
        )


class Change(msgspec.Struct, array_like=True, frozen=True):
    """One job's newest state, or its deletion."""

    revision: int
    submission_id: str
    record: bytes | None  #: JSON of the `JobRecord`; None when the job was deleted.


class ChangeBatch(msgspec.Struct, array_like=True, frozen=True):
    """A piece of the change stream, in the order of revisions."""

    epoch: int  #: Names one life of the manager. Revisions of different epochs don't compare.
    revision: int  #: The replica is current up to here once it has applied `changes`.
    changes: list[Change]
    reset: bool = False  #: `changes` begins a full list: what isn't in it doesn't exist.
    more: bool = False  #: There is more to fetch already; a full list isn't complete yet.


class ErrorBody(msgspec.Struct, array_like=True, frozen=True):
    """An error of our tree, on its way out of the manager."""

    code: str
    message: str


class ManagerReply(msgspec.Struct, array_like=True, frozen=True):
    """The answer of the manager to submit, stop and delete."""

    error: ErrorBody | None = None
    #: The submission id; for stop whether the job was live, for delete True.
    value: str | bool | None = None
    #: What the call changed. The face applies it before it answers, so clients read their writes.
    batch: ChangeBatch | None = None


_encode_record = msgspec.json.Encoder().encode
_record_decoder = msgspec.json.Decoder(JobRecord)
encode_message = msgspec.msgpack.Encoder().encode
_batch_decoder = msgspec.msgpack.Decoder(ChangeBatch)
_reply_decoder = msgspec.msgpack.Decoder(ManagerReply)


def encode_record(record: JobRecord) -> bytes:
    """Return a record as it is stored and published.

    Words of others in it, such as an error's, may be no text: that may not fail what comes after.
    """
    try:
        return _encode_record(record)
    except UnicodeEncodeError:
        return msgspec.json.encode(as_text(msgspec.to_builtins(record)))


def as_text(value: Any) -> Any:
    """Return a JSON value whose strings can be encoded: without halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {as_text(key): as_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_text(each) for each in value]
    return value


def decode_record(data: bytes) -> JobRecord:
    return _record_decoder.decode(data)


def decode_batch(data: bytes) -> ChangeBatch:
    return _batch_decoder.decode(data)


def decode_reply(data: bytes) -> ManagerReply:
    return _reply_decoder.decode(data)


def to_info(record: JobRecord, driver: DriverInfo | None) -> JobInfo:
    """Return a record as Ray's job API shows it."""
    return JobInfo(**_info_fields(record, driver))


def to_details(record: JobRecord, driver: DriverInfo | None) -> JobDetails:
    """Return a record as our own API shows it."""
    return JobDetails(
        **_info_fields(record, driver),
        revision=record.revision,
        entrypoint_num_cpus=record.entrypoint_num_cpus,
        entrypoint_num_gpus=record.entrypoint_num_gpus,
        entrypoint_memory=record.entrypoint_memory,
        entrypoint_resources=record.entrypoint_resources,
        entrypoint_label_selector=record.entrypoint_label_selector,
        max_log_bytes=record.max_log_bytes,
        pending_reason=pending_reason(record),
    )


def _info_fields(record: JobRecord, driver: DriverInfo | None) -> dict[str, Any]:
    return {
        "type": JobType.SUBMISSION,
        "job_id": driver.id if driver else None,
        "submission_id": record.submission_id,
        "driver_info": driver,
        "status": record.status,
        "entrypoint": record.entrypoint,
        "message": record.message or default_message(record),
        "error_type": record.error_type,
        "start_time": record.start_time,
        "end_time": record.end_time,
        "metadata": record.metadata,
        "runtime_env": record.runtime_env,
        "driver_agent_http_address": record.driver_agent_http_address,
        "driver_node_id": record.driver_node_id,
        "driver_exit_code": record.driver_exit_code,
    }


def default_message(record: JobRecord) -> str:
    """Return the status message in the words that Ray's clients and KubeRay know."""
    if record.status is JobStatus.PENDING:
        message = "Job has not started yet."
        if record.reserves_resources():
            message += (
                " It may be waiting for resources (CPUs, GPUs, memory, custom resources)"
                " to become available."
            )
        if record.runtime_env:
            message += " It may be waiting for the runtime environment to be set up."
        return message
    return {
        JobStatus.RUNNING: "Job is currently running.",
        JobStatus.STOPPED: "Job was intentionally stopped.",
        JobStatus.SUCCEEDED: "Job finished successfully.",
        JobStatus.FAILED: "Job failed.",
    }[record.status]


def pending_reason(record: JobRecord) -> str | None:
    """Return what a PENDING job waits for, for people; None for any other."""
    if record.status is not JobStatus.PENDING:
        return None
    reasons = []
    wanted = _wanted_resources(record)
    if wanted:
        reasons.append("waiting for resources (" + ", ".join(wanted) + ")")
    env = record.runtime_env or {}
    parts = [
        field
        for field in ("working_dir", "py_modules", "pip", "uv", "conda", "container", "image_uri")
        if env.get(field)
    ]
    if parts:
        reasons.append("setting up its runtime environment (" + ", ".join(parts) + ")")
    return ", ".join(reasons) or "starting"


def _wanted_resources(record: JobRecord) -> list[str]:
    wanted = []
    if record.entrypoint_num_cpus:
        wanted.append(f"{record.entrypoint_num_cpus:g} CPU")
    if record.entrypoint_num_gpus:
        wanted.append(f"{record.entrypoint_num_gpus:g} GPU")
    if record.entrypoint_memory:
        wanted.append(f"{record.entrypoint_memory / 2**20:.0f} MiB")
    wanted += [f"{value:g} {name}" for name, value in (record.entrypoint_resources or {}).items()]
    wanted += [
        f"label {name}={value}" for name, value in (record.entrypoint_label_selector or {}).items()
    ]
    return wanted


#: The fields of Ray's own `JobInfo` JSON, all that any Ray 2.x knows. `mirror_json` leaves out
#: what the installed one doesn't: one key too many breaks its lists.
MIRROR_FIELDS = (
    "status",
    "entrypoint",
    "message",
    "error_type",
    "start_time",
    "end_time",
    "metadata",
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "driver_agent_http_address",
    "driver_node_id",
    "driver_exit_code",
)


def mirror_json(record: JobRecord, known_fields: frozenset[str]) -> bytes:
    """Return the record as Ray's own `JobInfo` JSON, which Ray's tools read."""
    info: dict[str, Any] = {
        name: getattr(record, name) for name in MIRROR_FIELDS if name in known_fields
    }
    info["status"] = record.status.value
    info["message"] = record.message or default_message(record)
    # Ray writes 0 where nothing was asked for.
    for name in ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory"):
        if name in info:
            info[name] = info[name] or 0
    if record.runtime_env is not None:
        info["runtime_env_json"] = json.dumps(record.runtime_env)
    return json.dumps(info).encode()


def from_mirror(submission_id: str, data: bytes) -> JobRecord:
    """Return a job that Ray's own server wrote."""
    info: dict[str, Any] = as_text(json.loads(data))
    env_json = info.pop("runtime_env_json", None)
    known = {name: info[name] for name in MIRROR_FIELDS if info.get(name) is not None}
    return msgspec.convert(
        {
            **known,
            "submission_id": submission_id,
            "entrypoint": info.get("entrypoint") or "",
            "runtime_env": as_text(json.loads(env_json)) if env_json else None,
            "foreign": True,
        },
        JobRecord,
        strict=False,
    )
