"""What the HTTP face needs of the cluster. Implemented with Ray elsewhere, with fakes in tests.

Every port raises `errors.ServerNotReady` when what is behind it can't be reached for now.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import IO, Protocol

from ray_jobs.records import JobRecord

from .drivers import DriverEntry

#: A package of at most so many bytes may be held in memory.
SMALL_PACKAGE_BYTES = 256 * 1024


class ManagerPort(Protocol):
    """The JobManager, the only writer of job state."""

    async def attach(self, create: bool) -> bool:
        """Find the manager, starting it when there is none and `create` is set.

        Returns False when there is none and `create` isn't set. Cheap once it has been found.
        """

    async def submit(self, request_json: bytes, request_key: str) -> bytes:
        """Record a job and begin to run it.

        Args:
            request_json: JSON of a `SubmitRequest` with a `submission_id`.
            request_key: Names the request, so that a repeated call is recognised.

        Returns:
            A `ManagerReply` in msgpack, as from `stop` and `delete`.
        """

    async def stop(self, submission_id: str) -> bytes:
        """Request the end of a job; its value is False when the job had ended already."""

    async def delete(self, submission_id: str) -> bytes:
        """Remove a job that has ended."""

    async def changes(self, epoch: int, since: int, timeout_s: float) -> bytes:
        """Return a `ChangeBatch` in msgpack with what came after revision `since` of `epoch`.

        Waits up to `timeout_s` seconds for it; the batch is empty when nothing came. An unknown
        epoch (0 is none) gets a full list: a batch with `reset`.
        """


class StorePort(Protocol):
    """The records in the cluster's KV, for reading while there is no manager."""

    async def load(self) -> list[JobRecord]:
        """Return every job, in any order."""


class DriverPort(Protocol):
    """Ray's job table: every driver that connected to the cluster."""

    async def load(self) -> list[DriverEntry]:
        """Return every driver, in any order."""

    def updates(self) -> AsyncIterator[Sequence[DriverEntry]]:
        """Yield drivers as they come and go.

        The first item, which may be empty, says that the subscription stands: what changes after
        it isn't missed.
        """


class LogPort(Protocol):
    """Logs that are on another node than the head: those of Ray's own job server."""

    async def is_elsewhere(self, record: JobRecord) -> bool:
        """Return whether a job's log is on another node, and there alone."""

    def read(self, record: JobRecord, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of such a log, with `follow` also what is added, without an end.

        Raises `LogUnavailable` where the node or its file is gone.
        """


class PackagePort(Protocol):
    """Packages of runtime environments, in the GCS."""

    max_bytes: int  #: The largest package, in bytes.

    async def exists(self, uri: str) -> bool:
        """Return whether there is a package of this URI."""

    async def pin(self, uri: str) -> None:
        """Keep a package for a while though no job uses it yet. No-op if there is none."""

    async def put(self, uri: str, file: IO[bytes], *, by_process: bool) -> None:
        """Store a package, or replace it.

        Args:
            by_process: It is checked and stored by a process of its own; `file` is a regular one.

        Raises `BadPackage` for an archive that a node couldn't unpack as it should.
        """
