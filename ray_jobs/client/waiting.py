"""Waiting for a job, and watching it change."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from ray_jobs import errors
from ray_jobs.client.retry import PASSING, Outage, RetryPolicy
from ray_jobs.client.transport import Transport, quoted
from ray_jobs.models import API_PREFIX, JobDetails, JobInfo
from ray_jobs.timeouts import timeout

#: How long the server holds one request. Below the 60 s after which proxies lose patience.
LONG_POLL_S = 25.0
#: Between two requests to a server that can't hold them.
POLL_S = 0.5

#: An answer may come so long after the end of the caller's time, in seconds; then it is given up.
GRACE_S = 3.0

#: Asks for a job: (longest wait in seconds, what is known of it) -> what it is now.
Ask = Callable[[float, JobInfo | None], Awaitable[JobInfo]]


def check_timeout(timeout: float | None) -> float:
    """Return a timeout in seconds, infinity for None.

    Raises:
        InvalidRequest: it is no number, or negative.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise errors.InvalidRequest(f"timeout must be a number, not {type(timeout).__name__}.")
    if not timeout >= 0:
        raise errors.InvalidRequest(f"timeout must not be negative, got {timeout}.")
    return float(timeout)


def own_ask(transport: Transport, job_id: str, *, changes: bool) -> Ask:
    """Return what asks our server: it answers when the job has ended, or has changed.

    Args:
        changes: Whether any change is wanted, or only the end.
    """
    path = f"{API_PREFIX}/jobs/{quoted(job_id)}/wait"

    async def ask(patience: float, known: JobInfo | None) -> JobInfo:
        if changes and known is None:
            patience = 0.0
        query = f"timeout_s={patience:.3f}"
        if changes and isinstance(known, JobDetails):
            query += f"&after_revision={known.revision}"
        answer = await transport.request(
            "GET", path, query=query, read_timeout=patience + 30, is_held=True
        )
        return answer.check().json(JobDetails)

    return ask


def stock_ask(transport: Transport, job_id: str) -> Ask:
    """Return what asks Ray's own server, which answers at once."""
    path = f"/api/jobs/{quoted(job_id)}"

    async def ask(_patience: float, _known: JobInfo | None) -> JobInfo:
        answer = await transport.request("GET", path)
        return answer.check().json(JobInfo)

    return ask


async def watch(
    find_ask: Callable[[], Awaitable[Ask]], policy: RetryPolicy, deadline: float = math.inf
) -> AsyncGenerator[JobInfo, None]:
    """Yield a job as it is, then after each change, until it has ended or the deadline is over.

    Short outages of the server are survived.

    Args:
        find_ask: Finds out how this server is asked.
        deadline: Of `time.monotonic()`. Asks at least once, even if it is over.

    Raises:
        RayJobsError: the server doesn't come back, or refuses.
    """
    outage = Outage(policy, None if math.isinf(deadline) else deadline)
    ask: Ask | None = None
    known: JobInfo | None = None

    async def once(patience: float, known: JobInfo | None) -> JobInfo:
        nonlocal ask
        if ask is None:
            ask = await find_ask()
        return await ask(patience, known)

    while True:
        started = time.monotonic()
        left_s = max(deadline - started, 0.0)
        patience = min(left_s, LONG_POLL_S)
        try:
            job = await _within(left_s + GRACE_S, once(patience, known))
        except PASSING as error:
            await outage.survive(error)
            continue
        outage.over()
        changed = job != known
        known = job
        if changed:
            yield job
        now = time.monotonic()
        if job.status.is_terminal() or now >= deadline:
            return
        if not changed and now - started < min(patience, POLL_S):
            # The server doesn't hold requests, or not for this kind of job.
            await asyncio.sleep(min(POLL_S, deadline - now))


async def _within(seconds: float, answer: Coroutine[Any, Any, JobInfo]) -> JobInfo:
    """Return an answer that comes in time. Raises `ServerUnreachable`."""
    try:
        async with timeout(None if math.isinf(seconds) else seconds):
            return await answer
    except asyncio.TimeoutError as error:
        raise errors.ServerUnreachable("The server didn't answer in time.") from error


async def wait(
    find_ask: Callable[[], Awaitable[Ask]],
    policy: RetryPolicy,
    job_id: str,
    timeout: float | None,
) -> JobInfo:
    """Return a job once it has ended.

    Args:
        timeout: Seconds, or None for no limit.

    Raises:
        WaitTimeout: it didn't end in time.
    """
    seconds = check_timeout(timeout)
    deadline = time.monotonic() + seconds
    status = "unknown"
    failure: errors.RayJobsError | None = None
    try:
        async for job in watch(find_ask, policy, deadline):
            if job.status.is_terminal():
                return job
            status = str(job.status)
    except PASSING as error:
        if time.monotonic() < deadline:
            raise
        failure = error
    message = f"Job {job_id} has not ended within {seconds:g} s: it is {status}."
    if failure is not None:
        message = f"Job {job_id} has not ended within {seconds:g} s, as far as known: {failure}"
    raise errors.WaitTimeout(message) from failure
