"""The synchronous client: the asynchronous one, driven on a thread of its own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.client.background import BackgroundLoop
from ray_jobs.client.streams import Stream
from ray_jobs.client.types import Progress, ServerInfo
from ray_jobs.models import JobDetails, JobInfo, JobStatus


class JobSubmissionClient:
    """Submits jobs to a Ray cluster over HTTP, and follows them.

    Works with our server and with Ray's own; in threads, in a running event loop (which it
    blocks, as any synchronous call does), in Jupyter and after a fork. Use it as `with`, or call
    `close`. Creating one makes no request. The methods are those of `AsyncJobSubmissionClient`,
    where each is described together with what it raises.

    Args:
        address: The URL of the cluster's dashboard; see `AsyncJobSubmissionClient`.
        cookies: Sent with every request.
        metadata: Given to every job; a job's own wins.
        headers: Sent with every request. Without them, those of RAY_JOB_HEADERS (a JSON object).
        verify: Whether to verify the server's certificate, or the path of the CA certificates.

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
        self._async = AsyncJobSubmissionClient(address, cookies, metadata, headers, verify)
        self._background = BackgroundLoop()
        self._finalizer = weakref.finalize(self, _close, self._async, self._background)

    def __enter__(self) -> JobSubmissionClient:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The URL of the job server, without credentials."""
        return self._async.address

    def get_address(self) -> str:
        """Return the URL of the job server, without credentials."""
        return self._async.address

    def close(self) -> None:
        """Close the connections. No-op if already closed; no request can be made afterwards."""
        self._finalizer()

    def submit_job(
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
        """Submit a job, and return its submission id without waiting for it."""
        return self._background.run(
            self._async.submit_job(
                entrypoint=entrypoint,
                runtime_env=runtime_env,
                metadata=metadata,
                submission_id=submission_id,
                job_id=job_id,
                entrypoint_num_cpus=entrypoint_num_cpus,
                entrypoint_num_gpus=entrypoint_num_gpus,
                entrypoint_memory=entrypoint_memory,
                entrypoint_resources=entrypoint_resources,
                entrypoint_label_selector=entrypoint_label_selector,
                max_log_bytes=max_log_bytes,
                on_progress=on_progress,
                on_sending=on_sending,
            )
        )

    def get_job_status(self, job_id: str) -> JobStatus:
        """Return the state of a job."""
        return self._background.run(self._async.get_job_status(job_id))

    def get_job_info(self, job_id: str) -> JobInfo:
        """Return a job, by its submission id or its driver's job id."""
        return self._background.run(self._async.get_job_info(job_id))

    def get_job_details(self, job_id: str) -> JobDetails:
        """Return all that our server knows of a job."""
        return self._background.run(self._async.get_job_details(job_id))

    def list_jobs(
        self,
        *,
        status: JobStatus | str | Iterable[JobStatus | str] | None = None,
        limit: int | None = None,
    ) -> dict[str, JobInfo]:
        """Return jobs by submission id (drivers: by their job id), newest first."""
        return self._background.run(self._async.list_jobs(status=status, limit=limit))

    def get_job_logs(self, job_id: str, *, lines: int | None = None) -> str:
        """Return the log of a job, or its last `lines`."""
        return self._background.run(self._async.get_job_logs(job_id, lines=lines))

    def tail_job_logs(self, job_id: str, *, lines: int | None = None) -> Stream[str]:
        """Follow the log of a job, from its start until the job has ended and all was sent.

        Or from the last `lines` that there are now. For `for`, and for `async for`, which Ray's own
        client wants here.
        """
        return Stream(self._async.tail_job_logs(job_id, lines=lines), self._background)

    def watch_job(self, job_id: str) -> Stream[JobInfo]:
        """Yield a job as it is now, then after each change, the last time when it has ended.

        For `for` and for `async for`.
        """
        return Stream(self._async.watch_job(job_id), self._background)

    def stop_job(self, job_id: str) -> bool:
        """Ask a job to stop; return False when it had ended already."""
        return self._background.run(self._async.stop_job(job_id))

    def delete_job(self, job_id: str) -> bool:
        """Delete a job that has ended; return whether there was something to delete."""
        return self._background.run(self._async.delete_job(job_id))

    def get_version(self) -> str:
        """Return the version of the job API that the server speaks."""
        return self._background.run(self._async.get_version())

    def get_server_info(self) -> ServerInfo:
        """Return what the server says of itself. Asked once, then remembered."""
        return self._background.run(self._async.get_server_info())

    def wait_until_finish(self, job_id: str, timeout: float | None = None) -> JobInfo:
        """Wait until a job has ended (at most `timeout` seconds), and return it."""
        return self._background.run(self._async.wait_until_finish(job_id, timeout))


def _close(client: AsyncJobSubmissionClient, background: BackgroundLoop) -> None:
    background.stop(client.close())
