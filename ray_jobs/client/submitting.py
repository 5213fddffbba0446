"""Preparing a submission's environment, and sending the submission, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ray_jobs import errors, models
from ray_jobs.client.retry import RetryPolicy, past_limits
from ray_jobs.client.transport import Transport, quoted

if TYPE_CHECKING:
    from ray_jobs.client.runtime_env import Plan


async def plan(runtime_env: Mapping[str, Any] | None) -> Plan | None:
    """Return an environment, checked, with what is to be uploaded for it; None without one.

    Raises:
        InvalidRuntimeEnv: it is malformed, or names files that aren't there.
    """
    if runtime_env is not None and not isinstance(runtime_env, Mapping):
        raise errors.InvalidRuntimeEnv("runtime_env must be a dict.")
    if not runtime_env:
        return None
    from ray_jobs.client.runtime_env import normalize

    return await asyncio.to_thread(normalize, runtime_env)


async def send(
    transport: Transport,
    request: models.SubmitRequest,
    on_sending: Callable[[str], None] | None,
    policy: RetryPolicy,
    is_own_id: bool,
) -> str:
    """Send a submission, and return the id of the job.

    Again while the server is over a limit, else never twice: after a lost answer, or one that the
    server couldn't wait for, the job is looked for instead.

    Args:
        on_sending: Called with the id just before, each time.
        is_own_id: Whether the id is a random one of ours, so that a job that has it is ours.

    Raises:
        ServerUnreachable: there was no answer, and the job wasn't found.
        ServerNotReady: likewise, of the manager's.
    """
    return await past_limits(lambda: _send(transport, request, on_sending, is_own_id), policy)


async def _send(
    transport: Transport,
    request: models.SubmitRequest,
    on_sending: Callable[[str], None] | None,
    is_own_id: bool,
) -> str:
    submission_id = str(request.submission_id)
    if on_sending is not None:
        on_sending(submission_id)
    try:
        answer = (await transport.request("POST", "/api/jobs/", json=request)).check()
    except (errors.ServerUnreachable, errors.ServerNotReady) as error:
        from ray_jobs.client.connection_errors import was_sent

        if not was_sent(error):
            raise
        if is_own_id and await _exists(transport, submission_id):
            return submission_id
        error.hint = (
            f"The job may have been submitted nevertheless, as {submission_id}: ask for its status,"
            " or submit it again with that submission_id (it won't run twice)."
        )
        raise
    return answer.json(models.SubmitResponse).submission_id


async def _exists(transport: Transport, submission_id: str) -> bool:
    """Return whether a job is known to be there; when in doubt, it isn't."""
    try:
        answer = await transport.request("GET", f"/api/jobs/{quoted(submission_id)}")
    except errors.RayJobsError:
        return False
    return answer.status == 200
