"""What a submission must look like. Pure; for the server, and the client before it uploads.

The server judges by `validate`. The client refuses by `check_feasible` only what would fail at any
job server, Ray's own too.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ray_jobs.errors import InvalidRequest, InvalidRuntimeEnv
from ray_jobs.models import SubmitRequest
from ray_jobs.runtime_env_fields import check_fields, json_type
from ray_jobs.scrubbing import shown

#: A submission id is part of a file name (`job-driver-<id>.log`), of at most 255 bytes.
MAX_SUBMISSION_ID_BYTES = 200
#: The longest that fits into that file name at all.
MAX_FEASIBLE_ID_BYTES = 255 - len("job-driver-.log")
#: The kernel takes no argument or environment string over 128 KiB, its final NUL included
#: (MAX_ARG_STRLEN).
MAX_ARGUMENT_BYTES = 128 * 1024 - 1
#: Of one body. A driver can be handed no more: each takes three bytes of an argument at least. The
#: rest is for what isn't handed on. Counted before any value is looked at.
MAX_VALUES = MAX_ARGUMENT_BYTES // 3 + 4096
MAX_RESOURCES = 1000
#: All names of resources together, and all of labels with their values: what is stored of a job
#: must be small enough to be read with that of others.
MAX_RESOURCES_CHARACTERS = 64 * 1024
#: The variable by which a driver's `ray.init()` learns its runtime environment and metadata. The
#: name is Ray's, literally.
JOB_CONFIG_ENV_VAR = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Ray's metadata keys that link a driver to its submission.
SUBMISSION_ID_METADATA_KEY = "job_submission_id"
JOB_NAME_METADATA_KEY = "job_name"
#: Ray counts each resource in ten-thousandths, in 64 bits.
MAX_QUANTITY = (2**63 - 1) // 10_000
#: The smallest bound of a log: its beginning and its last lines must have room.
MIN_MAX_LOG_BYTES = 1024 * 1024
#: The longest file that there can be.
MAX_LOG_BYTES = 2**63 - 1


class _StrictSubmitRequest(SubmitRequest, kw_only=True, forbid_unknown_fields=True):
    pass


def parse_submit_request(body: bytes) -> SubmitRequest:
    """Return the submission in a request body. Raises `InvalidRequest`."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body isn't JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object with the key 'entrypoint'.")
    _check_count(data)
    present = {key: value for key, value in data.items() if value is not None}
    if "entrypoint" not in present:
        raise InvalidRequest("The key 'entrypoint' is missing: give the shell command to run.")
    if isinstance(present.get("runtime_env"), dict):
        fields = present["runtime_env"]
        present["runtime_env"] = {key: each for key, each in fields.items() if each is not None}
    try:
        request = msgspec.convert(present, _StrictSubmitRequest)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Malformed submission: {shown(str(error), 500)}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    validate(request)
    return request


def _check_count(data: object) -> None:
    """Refuse a body of so many values that it would take long to look at each."""
    left = MAX_VALUES
    pending = [data]
    while pending:
        item = pending.pop()
        if isinstance(item, (dict, list)):
            left -= len(item)
            if left < 0:
                raise InvalidRequest(
                    f"The body holds more than {MAX_VALUES:,} values. Put large data into a file of"
                    " the working_dir instead."
                )
            pending.extend(item.values() if isinstance(item, dict) else item)


def validate(request: SubmitRequest) -> None:
    """Raise `InvalidRequest` with what is wrong and what would be right, or return."""
    submission_id = request.submission_id or request.job_id
    if submission_id:
        check_submission_id(submission_id)
    for name in ("entrypoint_resources", "entrypoint_label_selector"):
        wanted = getattr(request, name) or {}
        if len(wanted) > MAX_RESOURCES:
            raise InvalidRequest(f"{name} holds more than {MAX_RESOURCES:,} names.")
        texts = (each for entry in wanted.items() for each in entry if isinstance(each, str))
        if sum(map(len, texts)) > MAX_RESOURCES_CHARACTERS:
            raise InvalidRequest(
                f"{name} holds names of more than {MAX_RESOURCES_CHARACTERS:,} characters in all."
            )
    check_fields(request.runtime_env or {})
    check_feasible(request)
    for name, text in (request.metadata or {}).items():
        _check_text("metadata", name, name)
        _check_text("metadata", text, name)


def check_feasible(request: SubmitRequest) -> None:
    """Raise `InvalidRequest` for what no job server can run, or return."""
    if not request.entrypoint.strip():
        raise InvalidRequest("The entrypoint is empty: give the shell command to run.")
    _check_text("entrypoint", request.entrypoint)
    _check_argument("entrypoint", request.entrypoint)
    submission_id = request.submission_id or request.job_id
    if submission_id:
        _check_file_name(submission_id, MAX_FEASIBLE_ID_BYTES)
    for name in ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory"):
        value = getattr(request, name)
        if value is not None:
            _check_quantity(name, value)
    for name, value in (request.entrypoint_resources or {}).items():
        if name in ("CPU", "GPU", "memory", "object_store_memory"):
            raise InvalidRequest(
                f"entrypoint_resources has no key '{name}': use entrypoint_num_cpus,"
                " entrypoint_num_gpus or entrypoint_memory."
            )
        if not name.strip():
            raise InvalidRequest("entrypoint_resources has an empty name.")
        _check_text("entrypoint_resources", name, name)
        _check_quantity("entrypoint_resources", value, name)
    _check_max_log_bytes(request.max_log_bytes)
    _check_env_vars(request.runtime_env or {})
    check_job_config(request.runtime_env, request.metadata, "")


def check_job_config(
    runtime_env: dict[str, Any] | None, metadata: dict[str, str] | None, submission_id: str
) -> None:
    """Raise `InvalidRequest` for more than can be handed to a driver, or return."""
    _check_argument(
        "runtime_env and metadata together (handed to the driver in one environment variable)",
        f"{JOB_CONFIG_ENV_VAR}={job_config_json(runtime_env, metadata, submission_id)}",
    )


def _check_max_log_bytes(max_log_bytes: int | None) -> None:
    if max_log_bytes is not None and not MIN_MAX_LOG_BYTES <= max_log_bytes <= MAX_LOG_BYTES:
        raise InvalidRequest(
            f"max_log_bytes must be {MIN_MAX_LOG_BYTES} (1 MiB) to {MAX_LOG_BYTES}, got"
            f" {max_log_bytes}."
        )


def check_submission_id(submission_id: str) -> None:
    """Raise `InvalidRequest` unless the id can name a job, its log file, and a path of a URL."""
    if submission_id in (".", ".."):
        raise InvalidRequest(
            f"The submission id {submission_id!r} can't be asked for: URLs drop such a segment."
        )
    if any(ord(char) < 32 or ord(char) == 127 for char in submission_id):
        raise InvalidRequest(
            f"The submission id {shown(submission_id)!r} holds a control character."
        )
    _check_file_name(submission_id, MAX_SUBMISSION_ID_BYTES)


def _check_file_name(submission_id: str, max_bytes: int) -> None:
    _check_text("submission_id", submission_id)
    if "/" in submission_id:
        raise InvalidRequest(
            f"The submission id {shown(submission_id)!r} holds a slash: it is part of a file name."
        )
    size = len(submission_id.encode())
    if size > max_bytes:
        raise InvalidRequest(
            f"The submission id is {size} bytes long; at most {max_bytes} are allowed, since it is"
            " part of a file name."
        )


def check_no_local_paths(runtime_env: dict[str, Any]) -> None:
    """Raise `InvalidRuntimeEnv` for files of the client's machine, which a server can't see."""
    py_modules = runtime_env.get("py_modules")
    entries = [("working_dir", runtime_env.get("working_dir"))]
    if isinstance(py_modules, list):
        entries += [("py_modules", each) for each in py_modules]
    for field, value in entries:
        if not isinstance(value, str):
            continue
        try:
            urlsplit(value)
        except ValueError:
            # Python's words may hold the address without its scheme: its password couldn't be told.
            raise InvalidRuntimeEnv(
                f"runtime_env['{field}'] is no URI: its host or port is malformed."
            ) from None
        if "://" not in value:
            raise InvalidRuntimeEnv(
                f"runtime_env['{field}'] must be a URI here, got {shown(value)!r}: a"
                " client uploads local files to PUT /api/packages/gcs/<name>.zip and submits gcs://<name>.zip."
            )


def job_config_json(
    runtime_env: dict[str, Any] | None, metadata: dict[str, str] | None, submission_id: str
) -> str:
    """Return the configuration that a driver's `ray.init()` picks up from its environment.

    The submission id links the driver to its job, so a user's key of that name doesn't win.
    """
    merged = {JOB_NAME_METADATA_KEY: submission_id, **(metadata or {})}
    merged[SUBMISSION_ID_METADATA_KEY] = submission_id
    return json.dumps({"runtime_env": runtime_env or {}, "metadata": merged})


def _check_text(what: str, text: str, key: str | None = None) -> None:
    if "\x00" in text:
        raise InvalidRequest(f"{_place(what, key)} holds a NUL character.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{_place(what, key)} is no text: it holds bytes that aren't UTF-8, or half of a"
            " surrogate pair. Encode it as UTF-8; other bytes can travel in a file of the"
            " working_dir."
        ) from None


def _check_argument(what: str, text: str, key: str | None = None) -> None:
    size = len(text.encode("utf-8", "surrogateescape"))
    if size > MAX_ARGUMENT_BYTES:
        raise InvalidRequest(
            f"{_place(what, key)}: {size:,} bytes; Linux takes at most {MAX_ARGUMENT_BYTES:,} in"
            " one argument or environment variable. Put the text into a file of the working_dir"
            " instead."
        )


def _check_quantity(what: str, value: float, key: str | None = None) -> None:
    # Compared before anything else: a whole number of any length may come here.
    if not 0 <= value <= MAX_QUANTITY:  # NaN too
        got = f"{value:.4g}" if isinstance(value, float) else str(value)[:40]
        raise InvalidRequest(
            f"{_place(what, key)} must be a number from 0 to {MAX_QUANTITY}, got {got}."
        )


def _place(what: str, key: str | None) -> str:
    """Return how a field, or an entry of it, is named in a refusal. What it costs is paid there."""
    return what if key is None else f"{what}[{shown(key)!r}]"


def _check_env_vars(runtime_env: dict[str, Any]) -> None:
    env_vars = runtime_env.get("env_vars")
    if env_vars is None:
        return
    if not isinstance(env_vars, dict):
        raise InvalidRuntimeEnv(
            f"runtime_env['env_vars'] must be an object of strings, got {json_type(env_vars)}."
        )
    field = "runtime_env['env_vars']"
    for name, value in env_vars.items():
        # "KEY=value" for a name shows that it is wrong without the value.
        key = name.partition("=")[0]
        if not isinstance(value, str):
            raise InvalidRuntimeEnv(
                f"{_place(field, key)} must be a string, got {json_type(value)}: quote it."
            )
        if not name or "=" in name:
            raise InvalidRuntimeEnv(
                f"{field} has an impossible name: {shown(key)!r}, and a = behind it."
                if name
                else f"{field} has an empty name."
            )
        _check_text(field, name, key)
        _check_text(field, value, key)
        _check_argument(field, f"{name}={value}", key)
