"""The asynchronous client. The synchronous one drives it."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ray_jobs import errors, models
from ray_jobs.client import submission
from ray_jobs.client.address import find_address
from ray_jobs.client.auth import check_cookies, check_headers, default_headers
from ray_jobs.client.retry import PASSING, RetryPolicy, past_limits, past_outages
from ray_jobs.client.tls import check_verify
from ray_jobs.client.types import Progress, ServerInfo
from ray_jobs.models import JobDetails, JobInfo, JobStatus

if TYPE_CHECKING:
    from ray_jobs.client.runtime_env import Plan
    from ray_jobs.client.transport import Answer, Transport
    from ray_jobs.client.waiting import Ask


class AsyncJobSubmissionClient:
    """Submits jobs to a Ray cluster over HTTP, and follows them. For asyncio.

    Works with our server and with Ray's own. Use it as `async with`, or call `close`. Creating one
    makes no request. Every method may raise `ServerUnreachable`, `AuthenticationFailed`,
    `UnexpectedResponse` and what else `ray_jobs.errors` has for a server's refusal.

    Args:
        address: The URL of the cluster's dashboard, as in `http://head-node:8265` or
            `https://host/team-a/ray`. Without it RAY_API_SERVER_ADDRESS counts, then RAY_ADDRESS,
            then `http://127.0.0.1:8265`.
        cookies: Sent with every request.
        metadata: Given to every job; a job's own wins.
        headers: Sent with every request. Without them, those of RAY_JOB_HEADERS (a JSON object).
        verify: Whether to verify the server's certificate, or the path of the CA certificates (a
            PEM file or a directory).

    Raises:
        InvalidAddress: the address is malformed.
        InvalidRequest: another argument is.
    """

    def __init__(
        self,
        address: str | None = None,
        cookies: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, Any] | None = None,
        verify: bool | str | os.PathLike[str] = True,
    ) -> None:
        self._address = find_address(address)
        self._headers = default_headers() if headers is None else check_headers(headers)
        self._cookies = check_cookies(cookies)
        self._metadata = submission.strings(metadata, "metadata")
        self._verify: bool | Path = check_verify(verify)
        self._retry = RetryPolicy()
        self._transport: Transport | None = None
        self._server_info: ServerInfo | None = None
        self._info_lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncJobSubmissionClient:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        """The URL of the job server, without credentials."""
        return self._address.url

    def get_address(self) -> str:
        """Return the URL of the job server, without credentials."""
        return self._address.url

    async def close(self) -> None:
        """Close the connections. No-op if already closed; no request can be made afterwards."""
        self._closed = True
        if self._transport is not None:
            await self._transport.close()

    async def submit_job(
        self,
        *,
        entrypoint: str,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        submission_id: str | None = None,
        job_id: str | None = None,
        entrypoint_num_cpus: int | float | None = None,
        entrypoint_num_gpus: int | float | None = None,
        entrypoint_memory: int | None = None,
        entrypoint_resources: Mapping[str, float] | None = None,
        entrypoint_label_selector: Mapping[str, str] | None = None,
        max_log_bytes: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_sending: Callable[[str], None] | None = None,
    ) -> str:
        """Submit a job, and return its submission id without waiting for it.

        Args:
            entrypoint: The shell command to run.
            runtime_env: As `ray.init` takes it. Local directories and files in it are uploaded.
            metadata: To keep with the job.
            submission_id: A unique id; a random one by default.
            job_id: An older name of `submission_id`.
            entrypoint_num_cpus, entrypoint_num_gpus: To reserve for the entrypoint alone.
            entrypoint_memory: Likewise, in bytes.
            entrypoint_resources: Likewise, custom resources by name.
            entrypoint_label_selector: Labels of the node to run on.
            max_log_bytes: What the job's log may take; its middle is dropped beyond that. Ray's own
                server refuses it.
            on_progress: Called while packages are built and sent, from any thread.
            on_sending: Called with the id, from any thread, just before the submission is sent. An
                interrupt before that leaves no job; one after it may leave one.

        Raises:
            InvalidRequest: an argument is malformed; `InvalidRuntimeEnv` for the environment.
            PackageTooLarge: a local directory is over the server's limit. Nothing was sent.
            DuplicateSubmissionId: the id is taken.
            ServerUnreachable: also if the answer was lost; the hint tells whether the job may run.
        """
        resources = {
            "entrypoint_num_cpus": entrypoint_num_cpus,
            "entrypoint_num_gpus": entrypoint_num_gpus,
            "entrypoint_memory": entrypoint_memory,
            "entrypoint_resources": entrypoint_resources,
            "entrypoint_label_selector": entrypoint_label_selector,
        }
        chosen = submission.chosen_id(submission_id, job_id)
        from ray_jobs.client import submitting

        plan = await submitting.plan(runtime_env)
        request = submission.build_request(
            entrypoint=entrypoint,
            submission_id=chosen or submission.new_submission_id(),
            runtime_env=plan.with_placeholders() if plan else {},
            metadata=self._metadata | submission.strings(metadata, "metadata"),
            resources=resources,
            max_log_bytes=max_log_bytes,
        )
        # After all checks: an upload may take minutes.
        request.runtime_env = await self._uploaded(plan, on_progress)
        is_own_id = chosen is None
        return await submitting.send(self._open(), request, on_sending, self._retry, is_own_id)

    async def _uploaded(
        self, plan: Plan | None, on_progress: Callable[[Progress], None] | None
    ) -> dict[str, Any]:
        """Return an environment for the wire, its local files uploaded."""
        if plan is None or not plan.packages:
            return plan.fields if plan else {}
        from ray_jobs.client.upload import upload

        limit = (await self._persistent_server_info()).max_package_bytes
        uris = [
            await past_limits(
                functools.partial(upload, self._open(), package, limit, on_progress), self._retry
            )
            for package in plan.packages
        ]
        return plan.with_uris(uris)

    async def get_job_status(self, job_id: str) -> JobStatus:
        """Return the state of a job.

        Raises:
            JobNotFound: there is no such job.
        """
        return (await self.get_job_info(job_id)).status

    async def get_job_info(self, job_id: str) -> JobInfo:
        """Return a job, by its submission id or its driver's job id.

        Raises:
            JobNotFound: there is no such job.
        """
        return (await self._job_request("GET", job_id)).json(JobInfo)

    async def get_job_details(self, job_id: str) -> JobDetails:
        """Return all that our server knows of a job.

        Raises:
            JobNotFound: there is no such job.
            UnsupportedByServer: it is Ray's own server.
        """
        path = f"{models.API_PREFIX}/jobs/{_quoted(job_id)}"
        await self._require_own("get_job_details")
        return (await self._open().request("GET", path)).check().json(JobDetails)

    async def list_jobs(
        self,
        *,
        status: JobStatus | str | Iterable[JobStatus | str] | None = None,
        limit: int | None = None,
    ) -> dict[str, JobInfo]:
        """Return jobs by submission id (drivers: by their job id), newest first.

        Args:
            status: Only jobs in this state, or in one of these.
            limit: At most so many.

        Raises:
            UnsupportedByServer: `status` or `limit` with Ray's own server.
        """
        wanted = submission.statuses(status)
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int) or limit < 1
        ):
            raise errors.InvalidRequest(f"limit must be a positive whole number, got {limit!r}.")
        if wanted or limit is not None:
            await self._require_own("list_jobs with status or limit")
            from ray_jobs.client.listing import list_pages

            jobs = await list_pages(self._open(), wanted, limit)
        else:
            answer = await self._open().request("GET", "/api/jobs/")
            jobs = answer.check().json(list[JobInfo])
            jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
        return {job.submission_id or job.job_id or "": job for job in jobs}

    async def get_job_logs(self, job_id: str, *, lines: int | None = None) -> str:
        """Return the log of a job.

        Args:
            lines: Only so many, the last ones; all by default. Our server sends no others.

        Raises:
            JobNotFound: there is no such job.
            NotASubmission: it is a driver that was started outside the job API.
        """
        if lines is not None:
            from ray_jobs.client import log_end

            log_end.check_lines(lines)
            if (await self.get_server_info()).is_ray_jobs:
                part = await log_end.read_last_lines(self._open(), job_id, lines, self._retry)
                return part.data.decode("utf-8", "replace")
        text = (await self._job_request("GET", job_id, "/logs")).json(models.LogsResponse).logs
        return text if lines is None else log_end.last_lines(text, lines)

    async def tail_job_logs(self, job_id: str, *, lines: int | None = None) -> AsyncIterator[str]:
        """Follow the log of a job, from its start until the job has ended and all was sent.

        Our server's stream is taken up again where it broke off; Ray's own has no means for that.

        Args:
            lines: Begin with so many lines, the last that there are now; with the first by default.

        Raises:
            JobNotFound: there is no such job.
            NotASubmission: it is a driver that was started outside the job API.
            LogStreamInterrupted: the connection was lost, for good.
        """
        _quoted(job_id)
        from ray_jobs.client import log_end, tailing

        log_end.check_lines(lines)
        try:
            info = await self._persistent_server_info()
        except PASSING as error:
            if not self._open().has_answered:
                raise
            raise tailing.interrupted(job_id, 0, error) from error
        if info.is_ray_jobs:
            offset = 0
            if lines is not None:
                part = await log_end.read_last_lines(self._open(), job_id, lines, self._retry)
                offset = part.start
            chunks = tailing.tail(self._open(), job_id, self._retry, offset)
        else:
            chunks = tailing.tail_stock(self._open(), job_id)
            if lines is not None:
                text = await self.get_job_logs(job_id)
                passed = len(text) - len(log_end.last_lines(text, lines))
                chunks = log_end.without_start(chunks, passed)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def stop_job(self, job_id: str) -> bool:
        """Ask a job to stop; return False when it had ended already.

        Raises:
            JobNotFound: there is no such job.
            NotASubmission: it is a driver that was started outside the job API.
        """
        answer = await self._job_request("POST", job_id, "/stop")
        return answer.json(models.StopResponse).stopped

    async def delete_job(self, job_id: str) -> bool:
        """Delete a job that has ended; return whether there was something to delete.

        Raises:
            JobNotFound: there is no such job.
            JobNotTerminal: it has not ended.
            NotASubmission: it is a driver that was started outside the job API.
        """
        return (await self._job_request("DELETE", job_id)).json(models.DeleteResponse).deleted

    async def get_version(self) -> str:
        """Return the version of the job API that the server speaks."""
        return (await self.get_server_info()).api_version

    async def get_server_info(self) -> ServerInfo:
        """Return what the server says of itself. Asked once, then remembered."""
        async with self._lock():
            if self._server_info is not None:
                return self._server_info
            answer = (await self._open().request("GET", "/api/version")).check()
            version = answer.json(models.VersionInfo)
            own = answer.headers.get(models.SERVER_VERSION_HEADER)
            limit = answer.headers.get(models.MAX_PACKAGE_BYTES_HEADER, "")
            self._server_info = ServerInfo(
                is_ray_jobs=own is not None,
                server_version=own,
                ray_version=version.ray_version,
                api_version=version.version,
                session_name=version.session_name,
                max_package_bytes=int(limit)
                if own is not None and limit.isdecimal()
                else models.STOCK_MAX_PACKAGE_BYTES,
            )
            return self._server_info

    async def _persistent_server_info(self) -> ServerInfo:
        """Return what the server says of itself; once it has answered anything, survive outages.

        Before, nothing tells that there is a server at this address, and who mistyped it waits.
        """

        ask = past_outages if self._open().has_answered else past_limits
        return await ask(self.get_server_info, self._retry)

    def _lock(self) -> asyncio.Lock:
        """Return the lock of the running loop: one of another loop can't be waited for."""
        loop = asyncio.get_running_loop()
        if self._info_lock is None or self._info_lock[0] is not loop:
            self._info_lock = (loop, asyncio.Lock())
        return self._info_lock[1]

    async def wait_until_finish(self, job_id: str, timeout: float | None = None) -> JobInfo:
        """Wait until a job has ended, and return it.

        Outages of the server are survived: up to a minute each, or as long as the timeout lets.

        Args:
            timeout: In seconds; None waits for ever.

        Raises:
            JobNotFound: there is no such job.
            WaitTimeout: it has not ended in time.
        """
        from ray_jobs.client import waiting

        return await waiting.wait(
            lambda: self._ask(job_id, changes=False), self._retry, job_id, timeout
        )

    async def watch_job(self, job_id: str) -> AsyncIterator[JobInfo]:
        """Yield a job as it is now, then after each change, the last time when it has ended.

        From our server these are `JobDetails`.

        Raises:
            JobNotFound: there is no such job.
        """
        from ray_jobs.client import waiting

        changes = waiting.watch(lambda: self._ask(job_id, changes=True), self._retry)
        try:
            async for job in changes:
                yield job
        finally:
            await changes.aclose()

    async def _ask(self, job_id: str, *, changes: bool) -> Ask:
        from ray_jobs.client import waiting

        _quoted(job_id)
        if (await self.get_server_info()).is_ray_jobs:
            return waiting.own_ask(self._open(), job_id, changes=changes)
        return waiting.stock_ask(self._open(), job_id)

    async def _job_request(self, method: str, job_id: str, rest: str = "") -> Answer:
        path = f"/api/jobs/{_quoted(job_id)}{rest}"

        async def ask() -> Answer:
            return (await self._open().request(method, path)).check()

        return await past_limits(ask, self._retry)

    async def _require_own(self, what: str) -> None:
        info = await self.get_server_info()
        if not info.is_ray_jobs:
            raise errors.UnsupportedByServer(
                f"{what} needs the server of ray-jobs, but {self.address} is Ray's own job server "
                f"(Ray {info.ray_version}).",
                hint="`ray-jobs plugin enable` on the head node installs it.",
            )

    def _open(self) -> Transport:
        if self._closed:
            raise RuntimeError("The client is closed.")
        if self._transport is None:
            from ray_jobs.client.transport import Transport

            self._transport = Transport(
                self._address, headers=self._headers, cookies=self._cookies, verify=self._verify
            )
        return self._transport


def _quoted(job_id: object) -> str:
    """Return an id as one segment of a URL's path."""
    if not isinstance(job_id, str) or not job_id:
        raise errors.InvalidRequest(f"A job's id is a string that isn't empty, not {job_id!r}.")
    from ray_jobs.client.transport import quoted

    return quoted(job_id)
