"""A cluster in memory: the ports of the face without Ray."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import IO, Any

import aiohttp.web
import msgspec
from aiohttp.test_utils import TestClient
from ray_jobs.dashboard_module.drivers import DriverEntry
from ray_jobs.dashboard_module.face import Face, FaceConfig
from ray_jobs.dashboard_module.package_check import check_package
from ray_jobs.dashboard_module.redaction import may_be_browser

from ray_jobs.errors import DuplicateSubmissionId, JobNotFound, JobNotTerminal, ServerNotReady
from ray_jobs.models import JobStatus, SubmitRequest
from ray_jobs.records import (
    Change,
    ChangeBatch,
    ErrorBody,
    JobRecord,
    ManagerReply,
    encode_message,
    encode_record,
)

#: Of what `FakeLogs` yields.
CHUNK_BYTES = 5

Client = TestClient[aiohttp.web.Request, aiohttp.web.Application]


def record(submission_id: str, **fields: Any) -> JobRecord:
    """Return a record of a running job, or of what `fields` say."""
    known: dict[str, Any] = {
        "entrypoint": "true",
        "status": JobStatus.RUNNING,
        "start_time": 1,
        "metadata": {},
        "runtime_env": {},
    }
    return JobRecord(submission_id=submission_id, **{**known, **fields})


class FakeManager:
    """A job manager that runs nothing: a test moves its jobs."""

    def __init__(self) -> None:
        self.exists = True
        self.epoch = 1
        self.batch_size = 1000
        self.submitted: list[tuple[SubmitRequest, str]] = []
        self.polls = 0
        #: While it is cleared, calls fail as when the manager can't be reached.
        self.reachable = True
        #: While it is cleared, a long-poll is held back though there are changes.
        self.stream_open = asyncio.Event()
        self.stream_open.set()
        self._records: dict[str, JobRecord] = {}
        self._changes: dict[str, Change] = {}
        self._revision = 0
        self._changed = asyncio.Event()
        self._polled = asyncio.Event()

    # --- what a test does -------------------------------------------------------------------

    def put(self, job: JobRecord) -> JobRecord:
        """Write a job, and tell the stream."""
        self._revision += 1
        job = msgspec.structs.replace(job, revision=self._revision)
        self._records[job.submission_id] = job
        self._tell(Change(self._revision, job.submission_id, encode_record(job)))
        return job

    def end(self, submission_id: str, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        self.put(msgspec.structs.replace(self._records[submission_id], status=status, end_time=9))

    def remove(self, submission_id: str) -> None:
        self._revision += 1
        del self._records[submission_id]
        self._tell(Change(self._revision, submission_id, None))

    def restart(self) -> None:
        """Begin another life: revisions start anew."""
        self.epoch += 1
        self._revision = 0
        self._changes.clear()
        for job in list(self._records.values()):
            self.put(job)

    async def next_poll(self) -> None:
        """Return once the face has asked for changes again."""
        self._polled.clear()
        await asyncio.wait_for(self._polled.wait(), 5)

    # --- what the face calls ----------------------------------------------------------------

    async def attach(self, create: bool) -> bool:
        self._check()
        self.exists = self.exists or create
        return self.exists

    async def submit(self, request_json: bytes, request_key: str) -> bytes:
        self._check()
        request = msgspec.json.decode(request_json, type=SubmitRequest)
        assert request.submission_id is not None
        if request.submission_id in self._records:
            return _error(
                DuplicateSubmissionId(
                    f"Job with submission_id {request.submission_id} already exists. Please use"
                    " a different submission_id."
                )
            )
        self.submitted.append((request, request_key))
        self.put(
            record(
                request.submission_id,
                entrypoint=request.entrypoint,
                status=JobStatus.PENDING,
                metadata=request.metadata or {},
                runtime_env=request.runtime_env or {},
            )
        )
        return self._reply(request.submission_id, request.submission_id)

    async def stop(self, submission_id: str) -> bytes:
        self._check()
        job = self._records.get(submission_id)
        if job is None:
            return _error(JobNotFound(f"Job {submission_id} does not exist"))
        is_live = not job.status.is_terminal()
        if is_live:
            self.end(submission_id, JobStatus.STOPPED)
        return self._reply(submission_id, is_live)

    async def delete(self, submission_id: str) -> bytes:
        self._check()
        job = self._records[submission_id]
        if not job.status.is_terminal():
            return _error(
                JobNotTerminal(
                    f"Attempted to delete job '{submission_id}', but it is in a non-terminal"
                    f" state {job.status}."
                )
            )
        self.remove(submission_id)
        return self._reply(submission_id, True)

    async def changes(self, epoch: int, since: int, timeout_s: float) -> bytes:
        self._check()
        self.polls += 1
        self._polled.set()
        await self.stream_open.wait()
        while epoch == self.epoch and since >= self._revision:
            await self._changed.wait()
            self._check()
        reset = epoch != self.epoch
        changes = [
            change
            for change in self._changes.values()
            if change.revision > (0 if reset else since) and not (reset and change.record is None)
        ]
        more = len(changes) > self.batch_size
        changes = changes[: self.batch_size]
        revision = changes[-1].revision if more else self._revision
        return encode_message(ChangeBatch(self.epoch, revision, changes, reset=reset, more=more))

    def wake(self) -> None:
        """Have long-polls look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _check(self) -> None:
        if not self.reachable:
            raise ServerNotReady("The manager restarts.", retry_after_s=3)

    def _tell(self, change: Change) -> None:
        self._changes.pop(change.submission_id, None)
        self._changes[change.submission_id] = change
        self.wake()

    def _reply(self, submission_id: str, value: str | bool) -> bytes:
        batch = ChangeBatch(self.epoch, 0, [self._changes[submission_id]])
        return encode_message(ManagerReply(value=value, batch=batch))


def _error(error: Any) -> bytes:
    return encode_message(ManagerReply(error=ErrorBody(error.code, error.message)))


class FakeStore:
    """The KV, as it is read without a manager."""

    def __init__(self) -> None:
        self.records: list[JobRecord] = []
        self.loads = 0

    async def load(self) -> list[JobRecord]:
        self.loads += 1
        return list(self.records)


class FakeDrivers:
    """Ray's job table."""

    def __init__(self) -> None:
        self.entries: dict[str, DriverEntry] = {}
        self.loads = 0
        self.failures: list[Exception] = []
        self.subscribed = asyncio.Event()
        self._updates: asyncio.Queue[list[DriverEntry] | Exception] = asyncio.Queue()

    def add(self, job_id: str, **fields: Any) -> DriverEntry:
        """Add a driver, of which the subscription says nothing."""
        fields = {"node_ip_address": "10.0.0.1", "pid": "77", "entrypoint": "python d.py", **fields}
        entry = DriverEntry(job_id=job_id, **fields)
        self.entries[job_id] = entry
        return entry

    def announce(self, *entries: DriverEntry) -> None:
        self._updates.put_nowait(list(entries))

    def break_off(self) -> None:
        """Have the subscription fail."""
        self.subscribed.clear()
        self._updates.put_nowait(OSError("the GCS is gone"))

    async def load(self) -> list[DriverEntry]:
        self.loads += 1
        if self.failures:
            raise self.failures.pop()
        return list(self.entries.values())

    async def updates(self) -> AsyncIterator[list[DriverEntry]]:
        yield []
        self.subscribed.set()
        while True:
            item = await self._updates.get()
            if isinstance(item, Exception):
                raise item
            yield item


class FakePackages:
    """The packages in the GCS."""

    def __init__(self) -> None:
        self.max_bytes = 20 * 1024 * 1024
        self.stored: dict[str, bytes] = {}
        self.pinned: list[str] = []
        self.putting = 0
        self.most_putting = 0
        #: Which were left to a process of its own.
        self.by_process: list[str] = []
        #: While it is cleared, a `put` doesn't return.
        self.writable = asyncio.Event()
        self.writable.set()
        self.put_begun = asyncio.Semaphore(0)

    async def exists(self, uri: str) -> bool:
        return uri in self.stored

    async def pin(self, uri: str) -> None:
        self.pinned.append(uri)

    async def put(self, uri: str, file: IO[bytes], *, by_process: bool) -> None:
        if by_process:
            file.fileno()  # what a process can be given
            self.by_process.append(uri)
        check_package(uri, file)
        file.seek(0)
        self.putting += 1
        self.most_putting = max(self.most_putting, self.putting)
        self.put_begun.release()
        await self.writable.wait()
        self.stored[uri] = file.read()
        self.putting -= 1


class FakeLogs:
    """Logs of Ray's own jobs on other nodes."""

    def __init__(self) -> None:
        self.elsewhere: dict[str, bytes] = {}
        self.failure: Exception | None = None
        self._grown = asyncio.Event()

    def append(self, submission_id: str, data: bytes) -> None:
        self.elsewhere[submission_id] = self.elsewhere.get(submission_id, b"") + data
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def is_elsewhere(self, record: JobRecord) -> bool:
        return record.submission_id in self.elsewhere

    async def read(self, record: JobRecord, *, follow: bool) -> AsyncGenerator[bytes, None]:
        if self.failure is not None:
            raise self.failure
        offset = 0
        while True:
            while data := self.elsewhere[record.submission_id][offset : offset + CHUNK_BYTES]:
                offset += len(data)
                yield data
            if not follow:
                return
            await self._grown.wait()


class Cluster:
    """Everything behind a face."""

    def __init__(self, log_dir: pathlib.Path) -> None:
        self.log_dir = log_dir
        self.manager = FakeManager()
        self.store = FakeStore()
        self.drivers = FakeDrivers()
        self.packages = FakePackages()
        self.logs = FakeLogs()

    def face(self, **config: Any) -> Face:
        """Return a face over this cluster. `config`: fields of `FaceConfig`."""
        known: dict[str, Any] = {
            "log_dir": str(self.log_dir),
            "session_name": "session_1",
            "ray_version": "2.60.0",
            "ray_commit": "abc",
            "server_version": "0.1.0",
            "redact": may_be_browser,
            "client": lambda request: request.remote or "",
        }
        return Face(
            config=FaceConfig(**{**known, **config}),
            manager=self.manager,
            store=self.store,
            drivers=self.drivers,
            packages=self.packages,
            logs=self.logs,
        )

    def log(self, submission_id: str) -> pathlib.Path:
        return self.log_dir / f"job-driver-{submission_id}.log"

    def append(self, submission_id: str, data: bytes) -> None:
        with open(self.log(submission_id), "ab") as file:
            file.write(data)
