"""A job as the face shows it: a submission from its record, or a driver from Ray's job table."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ray_jobs.models import DriverInfo, JobDetails, JobInfo, JobStatus, JobType
from ray_jobs.records import JobRecord, to_details, to_info
from ray_jobs.scrubbing import redact as take_secrets_out

#: Where a job stands in lists: its start (ms since epoch, 0 if unknown), then its id.
Key = tuple[int, str]

Shown = TypeVar("Shown", bound=JobInfo)

_encode = msgspec.json.Encoder().encode


class SubmissionJob(msgspec.Struct, gc=False, eq=False):
    """A job of the job API, with the last driver that it started.

    Never changed, but replaced; so its JSON is encoded once. Not tracked by the garbage collector,
    for which a hundred thousand of them would be a long pause in somebody else's event loop.
    """

    record: JobRecord
    driver: DriverInfo | None
    _json: bytes | None = None
    #: For browsers; the same object where there is nothing to hide.
    _redacted_json: bytes | None = None

    @property
    def id(self) -> str:
        return self.record.submission_id

    @property
    def key(self) -> Key:
        return (self.record.start_time or 0, self.record.submission_id)

    @property
    def status(self) -> JobStatus:
        return self.record.status

    def info_json(self, redact: bool) -> bytes:
        """Return the job as JSON of the stock API."""
        if self._json is None:
            self._json = _encode(to_info(self.record, self.driver))
        if not redact:
            return self._json
        if self._redacted_json is None:
            info = to_info(self.record, self.driver)
            take_secrets_out(info)
            encoded = _encode(info)
            self._redacted_json = self._json if encoded == self._json else encoded
        return self._redacted_json

    def details(self, redact: bool) -> JobDetails:
        """Return the job as our own API shows it."""
        details = to_details(self.record, self.driver)
        if redact:
            take_secrets_out(details)
        return details


class DriverJob(msgspec.Struct, eq=False):
    """A driver that was started outside the job API."""

    info: JobInfo

    @property
    def id(self) -> str:
        return self.info.job_id or ""

    @property
    def key(self) -> Key:
        return (self.info.start_time or 0, self.id)

    @property
    def status(self) -> JobStatus:
        return self.info.status

    def info_json(self, redact: bool) -> bytes:
        """Return the job as JSON of the stock API."""
        return _encode(self._shown(JobInfo(**self._fields()), redact))

    def details(self, redact: bool) -> JobDetails:
        """Return the job as our own API shows it."""
        return self._shown(JobDetails(**self._fields()), redact)

    def _fields(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self.info)

    @staticmethod
    def _shown(info: Shown, redact: bool) -> Shown:
        if redact:
            take_secrets_out(info)
        return info


Job = SubmissionJob | DriverJob


def driver_job(
    *,
    driver: DriverInfo,
    is_dead: bool,
    entrypoint: str,
    start_time: int,
    end_time: int,
    metadata: dict[str, str],
    runtime_env: dict[str, Any],
) -> DriverJob:
    """Return a driver as a job of its own. Times are ms since epoch."""
    return DriverJob(
        JobInfo(
            type=JobType.DRIVER,
            job_id=driver.id,
            driver_info=driver,
            # Ray knows only that a driver is gone, not how it ended.
            status=JobStatus.SUCCEEDED if is_dead else JobStatus.RUNNING,
            entrypoint=entrypoint,
            start_time=start_time,
            end_time=end_time,
            metadata=metadata,
            runtime_env=runtime_env,
        )
    )
