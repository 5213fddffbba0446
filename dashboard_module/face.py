"""The face itself: what the routes call. It owns the replica, the driver table and the ports."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import re
import secrets
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp.web
import msgspec

from ray_jobs import errors
from ray_jobs.growth import Growth
from ray_jobs.log_files import log_name
from ray_jobs.models import JobStatus, JobType, SubmitRequest
from ray_jobs.records import ManagerReply, decode_reply
from ray_jobs.timeouts import timeout

from .driver_follower import DriverFollower
from .errors import persistently
from .follower import Follower
from .guard.limits import Gauge
from .guard.settings import DEFAULT_MAX_SUBMISSION_BYTES
from .jobs import DriverJob, Job, Key, SubmissionJob
from .notes import note_job
from .ports import DriverPort, LogPort, ManagerPort, PackagePort, StorePort
from .steps import Step
from .turns import Turns

#: Letters and digits that nobody takes for another one.
_ID_ALPHABET = "".join(sorted(set(string.ascii_letters + string.digits) - set("IloO0")))
_ID_LENGTH = 16
_DRIVER_ID = re.compile(r"[0-9a-f]{8}")
#: Jobs of a long list after which time is looked at. Where secrets are taken out first it is after
#: each: one may take longer than a step.
LIST_SLICE_JOBS = 10
#: Of a list, sent at once.
LIST_PIECE_BYTES = 128 * 1024
#: Packages that are handed on at once, of those that take a process.
MAX_BIG_UPLOADS = 2
#: Packages that are received at once, into files.
MAX_UPLOADS = 32
#: Threads that read logs from the disk; those in the page cache need none.
LOG_THREADS = 4
#: How long `close` waits for the tails to tell their clients, in seconds.
CLOSE_PATIENCE_S = 1.0


class FaceConfig(msgspec.Struct, kw_only=True, frozen=True):
    """What a host tells its face."""

    log_dir: str  #: The session's log folder on the head node.
    session_name: str
    ray_version: str
    ray_commit: str
    server_version: str  #: The version of ray-jobs.
    #: Whether secrets are kept from who sent this request.
    redact: Callable[[aiohttp.web.Request], bool]
    max_submission_bytes: int = DEFAULT_MAX_SUBMISSION_BYTES
    #: Returns who sent a request: an address.
    client: Callable[[aiohttp.web.Request], str]
    upload_share: int = 0  #: Packages that one client may send at once; 0 for as many as all.
    check_share: int = 0  #: Likewise, that are looked through.
    #: Jobs that may be PENDING before a submission is refused; 0 for any number.
    max_queued_jobs: int = 0


class Face:
    """The HTTP face of one cluster. Needs a running event loop from `start` on."""

    def __init__(
        self,
        *,
        config: FaceConfig,
        manager: ManagerPort,
        store: StorePort,
        drivers: DriverPort,
        packages: PackagePort,
        logs: LogPort,
    ) -> None:
        self.config = config
        self.packages = packages
        self.logs = logs
        self.uploads = Turns(MAX_UPLOADS, config.upload_share, "packages are being uploaded")
        self.checks = Turns(
            MAX_BIG_UPLOADS, config.check_share, "packages are being looked through"
        )
        #: Set once the server shuts down: tails and waits end.
        self.closing = asyncio.Event()
        #: What tails wait with.
        self.growth = Growth()
        #: Where logs are read that aren't in the page cache.
        self.log_threads = ThreadPoolExecutor(LOG_THREADS, thread_name_prefix="ray-jobs-log")
        self._manager = manager
        self._drivers = DriverFollower(drivers, self._on_drivers)
        self._follower = Follower(manager, store, self._drivers.table.driver_of)
        self._tails: set[asyncio.Task[None]] = set()
        self._attaching: asyncio.Task[None] | None = None
        #: Submissions on their way, and with the jobs in the queue their limit.
        self._submitting = Gauge(config.max_queued_jobs, "jobs in the queue")

    async def start(self) -> None:
        """Begin to serve.

        Where there was a manager it is looked for now: it may be dead, or of an earlier version,
        and the first request may come late.
        """
        self._attaching = asyncio.ensure_future(
            persistently("Looking for the job manager", self._attach_once)
        )

    async def _attach_once(self) -> bool:
        await self._manager.attach(create=False)
        return False

    async def close(self) -> None:
        """End tails and waits, and stop following the cluster. No-op the second time."""
        self.closing.set()
        self._follower.replica.wake_all()
        if self._tails:
            await asyncio.wait(self._tails, timeout=CLOSE_PATIENCE_S)
        if self._attaching is not None:
            self._attaching.cancel()
            await asyncio.wait([self._attaching])
        await self._drivers.close()
        await self._follower.close()
        self.log_threads.shutdown(wait=False)
        self.growth.close()

    # --- reading ----------------------------------------------------------------------------

    async def before_read(self) -> None:
        """Return once jobs may be read. Normally at once."""
        await self._drivers.before_read()
        await self._follower.before_read()

    async def find(self, job_id: str) -> Job:
        """Return a job by its submission id, or by the id of any of its drivers.

        Raises `JobNotFound`.
        """
        await self.before_read()
        job = self._known(job_id)
        if job is None and _DRIVER_ID.fullmatch(job_id):
            await self._drivers.reload()
            job = self._known(job_id)
        if job is None:
            raise errors.JobNotFound(f"Job {job_id} does not exist")
        return job

    async def find_submission(self, job_id: str, action: str) -> SubmissionJob:
        """Return a job that isn't a driver's own.

        Args:
            action: What it is needed for: "stop".

        Raises `JobNotFound`, and `NotASubmission`.
        """
        job = await self.find(job_id)
        if isinstance(job, DriverJob):
            raise errors.NotASubmission(f"Can only {action} submission type jobs")
        return job

    def has_ended(self, job: SubmissionJob) -> bool:
        """Return whether a job that was found before has ended by now, or was deleted."""
        now = self._now(job)
        return now is None or now.status.is_terminal()

    def log_may_be_cut_off(self, job: SubmissionJob) -> bool:
        """Return whether the log of a job that was found before is known to lack its end."""
        now = self._now(job)
        return now is not None and now.record.log_may_be_cut_off

    def _now(self, job: SubmissionJob) -> SubmissionJob | None:
        """Return what has become of a job that was found before, None if it was deleted."""
        now = self._follower.replica.index.get(job.id)
        # Its id may have been given to another job. It may have a new attempt itself: see
        # `transitions.not_started`.
        is_same = now is not None and now.record.request_key == job.record.request_key
        return now if is_same else None

    def watch(
        self, job: SubmissionJob, wake: Callable[[], None]
    ) -> contextlib.AbstractContextManager[None]:
        """Have `wake` called after each change of a job, while the context is open."""
        return self._follower.watch(job.id, wake)

    async def list_json(self, *, redact: bool, keyed: bool) -> AsyncIterator[bytes]:
        """Yield pieces of the JSON list of all jobs in the stock format: submissions, then drivers.

        Args:
            keyed: As an object by submission id or driver job id, not as an array.
        """
        await self.before_read()
        separator, parts, size = b"", list[bytes](), 0
        yield b"{" if keyed else b"["
        step = Step()
        for jobs in self._slices(1 if redact else LIST_SLICE_JOBS):
            members = [_member(job, redact, keyed) for job in jobs]
            parts += members
            size += sum(map(len, members))
            if size >= LIST_PIECE_BYTES or step.is_over():
                if parts:
                    yield separator + b",".join(parts)
                    separator, parts, size = b",", [], 0
                await step.next()
        yield (separator if parts else b"") + b",".join(parts) + (b"}" if keyed else b"]")

    async def page(
        self,
        *,
        limit: int,
        before: Key | None,
        statuses: Collection[JobStatus] | None,
        job_type: JobType | None,
    ) -> tuple[list[Job], Key | None]:
        """Return one page of all jobs, newest first, and where the next one begins, if any.

        Args:
            limit: At most so many.
            before: Where the page begins: what the last call returned.
            statuses: Only these; None for all.
            job_type: Only this; None for both.
        """
        await self.before_read()
        sources: list[Iterator[Job]] = []
        if job_type is not JobType.DRIVER:
            sources.append(self._follower.replica.index.newest(statuses, before))
        if job_type is not JobType.SUBMISSION:
            drivers = [
                job
                for job in self._drivers.table.jobs()
                if (statuses is None or job.status in statuses)
                and (before is None or job.key < before)
            ]
            sources.append(iter(sorted(drivers, key=_key, reverse=True)))
        jobs: list[Job] = []
        for job in heapq.merge(*sources, key=_key, reverse=True):
            if len(jobs) == limit:
                return jobs, jobs[-1].key
            jobs.append(job)
        return jobs, None

    async def wait(self, job_id: str, timeout_s: float, after_revision: int | None) -> Job:
        """Return a job once it has ended, has changed, or `timeout_s` seconds have passed.

        Args:
            after_revision: The revision that the caller has seen: any other is a change, since
                revisions start anew with each life of the manager. None: wait for the end only.

        Raises `JobNotFound`, also when it is deleted meanwhile.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        found = await self.find(job_id)
        if isinstance(found, DriverJob):
            return await self._wait_for_driver(found, deadline)
        changed = asyncio.Event()
        with self.watch(found, changed.set):
            while True:
                changed.clear()
                job = self._follower.replica.index.get(found.id)
                if job is None:
                    raise errors.JobNotFound(f"Job {job_id} does not exist")
                if job.status.is_terminal() or self.closing.is_set():
                    return job
                if after_revision is not None and job.record.revision != after_revision:
                    return job
                if not await _wait_until(changed, deadline):
                    return job

    # --- changing ---------------------------------------------------------------------------

    async def submit(self, request: SubmitRequest) -> str:
        """Submit a job, and return its id.

        Raises `TooManyRequests` when the queue is full, and what the manager refuses it with.
        """
        submission_id = request.submission_id or request.job_id or generated_id()
        note_job(submission_id)
        # With the id and the key in it, the request may be repeated: it is one submission.
        request = msgspec.structs.replace(request, submission_id=submission_id, job_id=None)
        request_json, request_key = msgspec.json.encode(request), secrets.token_hex(16)
        # A face that has just begun to serve knows of no job in the queue.
        await self._follower.before_read()
        self._submitting.take(others=self._follower.replica.index.count(JobStatus.PENDING))
        try:
            await self._call(lambda: self._manager.submit(request_json, request_key))
        except errors.ServerNotReady as error:
            raise errors.ServerNotReady(
                f"{error.message} The job may have been submitted nevertheless, as"
                f" {submission_id}: with that submission_id it won't run twice.",
                retry_after_s=error.retry_after_s,
            ) from error
        finally:
            self._submitting.give_back()
        return submission_id

    async def stop(self, job_id: str) -> bool:
        """Request the end of a job. Returns False if it had ended.

        Raises `JobNotFound`, and `NotASubmission`.
        """
        job = await self.find_submission(job_id, "stop")
        return bool((await self._call(lambda: self._manager.stop(job.id))).value)

    async def delete(self, job_id: str) -> bool:
        """Remove a job that has ended.

        Raises `JobNotFound`, `NotASubmission`, and `JobNotTerminal`.
        """
        job = await self.find_submission(job_id, "delete")
        return bool((await self._call(lambda: self._manager.delete(job.id))).value)

    async def _call(self, call: Callable[[], Awaitable[bytes]]) -> ManagerReply:
        if not await self._follower.attach(create=True):
            raise errors.ServerNotReady
        reply = decode_reply(await call())
        if reply.batch is not None:
            self._follower.apply_early(reply.batch)
        if reply.error is not None:
            error_class = errors.error_classes().get(reply.error.code, errors.RayJobsError)
            raise error_class(reply.error.message)
        return reply

    # --- logs -------------------------------------------------------------------------------

    def log_path(self, job: SubmissionJob) -> str | None:
        """Return where a job's log is at first, on the head: see `log_files.places`.

        None for an id that can't name a file.

        Ray's own server takes any id, "../../secret" too.
        """
        if "/" in job.id or "\x00" in job.id:
            return None
        return os.path.join(self.config.log_dir, log_name(job.id))

    @contextlib.contextmanager
    def tailing(self) -> Iterator[None]:
        """Have `close` wait for the task that runs this context."""
        task = asyncio.current_task()
        assert task is not None
        self._tails.add(task)
        try:
            yield
        finally:
            self._tails.discard(task)

    # --- inside -----------------------------------------------------------------------------

    def _known(self, job_id: str) -> Job | None:
        table = self._drivers.table
        driver_job = table.job(job_id)
        if driver_job is not None:
            return driver_job
        return self._follower.replica.index.get(table.submission_of(job_id) or job_id)

    def _slices(self, size: int) -> Iterator[list[Job]]:
        """Yield all jobs, a slice at a time; in between they may change."""
        replica = self._follower.replica
        keys = replica.index.keys()
        for start in range(0, len(keys), size):
            found = (replica.index.get(key[1]) for key in keys[start : start + size])
            yield [job for job in found if job is not None]
        drivers = self._drivers.table.jobs()
        for start in range(0, len(drivers), size):
            yield list(drivers[start : start + size])

    def _on_drivers(self, submission_ids: set[str]) -> None:
        for submission_id in submission_ids:
            self._follower.replica.refresh_driver(submission_id)

    async def _wait_for_driver(self, job: DriverJob, deadline: float) -> DriverJob:
        while not job.status.is_terminal() and not self.closing.is_set():
            changed = self._drivers.changed()
            job = self._drivers.table.job(job.id) or job
            if job.status.is_terminal() or not await _wait_until(changed, deadline):
                break
        return job


def generated_id() -> str:
    """Return a new submission id, in the form that Ray gives them."""
    return "raysubmit_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def _key(job: Job) -> Key:
    return job.key


def _member(job: Job, redact: bool, keyed: bool) -> bytes:
    encoded = job.info_json(redact)
    return msgspec.json.encode(job.id) + b":" + encoded if keyed else encoded


async def _wait_until(event: asyncio.Event, deadline: float) -> bool:
    """Wait for an event. Returns False if the deadline (of the loop's clock) passed without it."""
    remaining_s = deadline - asyncio.get_running_loop().time()
    if remaining_s <= 0:
        return False
    try:
        async with timeout(remaining_s):
            await event.wait()
    except asyncio.TimeoutError:
        return False
    return True
