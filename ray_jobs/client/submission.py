"""What is sent to submit a job. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ray_jobs.errors import InvalidRequest, InvalidRuntimeEnv
from ray_jobs.models import JobStatus, SubmitRequest
from ray_jobs.validation import check_feasible

#: No 0 and O, 1 and l and I: ids are read aloud and typed.
_ALPHABET = "23456789abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"


def new_submission_id() -> str:
    """Return a random id that no other job has."""
    return "raysubmit_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))


def chosen_id(submission_id: str | None, job_id: str | None) -> str | None:
    """Return the id that the user chose, if any.

    Raises:
        InvalidRequest: both names were used, for different ids, or it is no text.
    """
    for name, value in (("submission_id", submission_id), ("job_id", job_id)):
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a string, not {type(value).__name__}.")
    if submission_id and job_id and submission_id != job_id:
        raise InvalidRequest(
            f"submission_id and job_id are two names for one thing, but {submission_id!r} and "
            f"{job_id!r} differ."
        )
    return submission_id or job_id or None


def strings(value: object, name: str) -> dict[str, str]:
    """Return a mapping of strings to strings; an empty one for None.

    Raises:
        InvalidRequest: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be a dict, not {type(value).__name__}.")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise InvalidRequest(
                f"{name} must be a dict of strings, but {key!r} is {item!r}, of type "
                f"{type(item).__name__}."
            )
    return dict(value)


def build_request(
    *,
    entrypoint: str,
    submission_id: str,
    runtime_env: dict[str, Any],
    metadata: Mapping[str, str],
    resources: Mapping[str, Any],
    max_log_bytes: int | None = None,
) -> SubmitRequest:
    """Return the request for a job, one that can be sent and that a job server can run.

    Args:
        runtime_env: Without local paths.
        resources: The `entrypoint_*` arguments of `submit_job`.

    Raises:
        InvalidRequest: an argument is of the wrong type, or no server could do anything with it.
    """
    check_entrypoint(entrypoint)
    check_resources(resources)
    _check_amount(max_log_bytes, "max_log_bytes", whole=True)
    plain: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in resources.items()
    }
    request = SubmitRequest(
        entrypoint=entrypoint,
        submission_id=submission_id,
        runtime_env=runtime_env,
        metadata=dict(metadata),
        max_log_bytes=max_log_bytes,
        **plain,
    )
    _check_json(request)
    check_feasible(request)
    return request


def _check_json(request: SubmitRequest) -> None:
    """Raise InvalidRequest for what JSON has no form for, naming the argument."""
    for name in request.__struct_fields__:
        error_class = InvalidRuntimeEnv if name == "runtime_env" else InvalidRequest
        try:
            msgspec.json.encode(getattr(request, name))
        except UnicodeEncodeError as error:
            raise error_class(
                f"{name} holds bytes that aren't UTF-8, or half of a surrogate pair: "
                f"{error.object[:80]!a}.",
                hint="Encode it as UTF-8; other bytes can travel in a file of the working_dir.",
            ) from None
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise error_class(
                f"{name} can't be sent as JSON: {error}.",
                hint="It may hold strings, numbers, booleans, None, lists and dicts.",
            ) from None


def check_entrypoint(entrypoint: object) -> None:
    """Raise InvalidRequest unless there is a command."""
    if not isinstance(entrypoint, str):
        raise InvalidRequest(f"entrypoint must be a string, not {type(entrypoint).__name__}.")
    if not entrypoint.strip():
        raise InvalidRequest("entrypoint is empty: give the shell command to run.")


def check_resources(resources: Mapping[str, Any]) -> None:
    """Raise InvalidRequest unless the `entrypoint_*` arguments are what they should be."""
    for name in ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory"):
        _check_amount(resources.get(name), name, whole=name == "entrypoint_memory")
    custom = resources.get("entrypoint_resources")
    if custom is not None:
        if not isinstance(custom, Mapping) or not all(isinstance(key, str) for key in custom):
            raise InvalidRequest("entrypoint_resources must be a dict of names to amounts.")
        for name, amount in custom.items():
            _check_amount(amount, f"entrypoint_resources[{name!r}]", whole=False)
    strings(resources.get("entrypoint_label_selector"), "entrypoint_label_selector")


def _check_amount(amount: object, name: str, *, whole: bool) -> None:
    if amount is None:
        return
    kinds = (int,) if whole else (int, float)
    if isinstance(amount, bool) or not isinstance(amount, kinds):
        wanted = "a whole number of bytes" if whole else "a number"
        raise InvalidRequest(f"{name} must be {wanted}, not {amount!r}.")
    if not 0 <= amount < float("inf"):
        raise InvalidRequest(f"{name} must not be negative or endless, got {amount}.")


def statuses(status: JobStatus | str | Iterable[JobStatus | str] | None) -> list[JobStatus]:
    """Return the states to filter a list by.

    Raises:
        InvalidRequest: there is no such state.
    """
    if status is None:
        return []
    try:
        if isinstance(status, str):
            return [JobStatus(status)]
        return sorted({JobStatus(one) for one in status}, key=str)
    except (ValueError, TypeError):
        known = ", ".join(JobStatus)
        raise InvalidRequest(f"{status!r} is not a state of jobs: {known}.") from None
