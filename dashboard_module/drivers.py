"""Ray's job table as the face sees it: which drivers belong to which submission. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ray_jobs.models import DriverInfo

from .jobs import DriverJob, driver_job

#: Drivers in such namespaces are Ray's own, or ours: no jobs.
INTERNAL_NAMESPACE_PREFIX = "_ray_internal_"


class DriverEntry(msgspec.Struct, kw_only=True, frozen=True):
    """One driver that connected to the cluster."""

    job_id: str  #: Ray's job id, 8 hexadecimal digits; it grows from driver to driver.
    submission_id: str | None = None  #: The job that started it, if one did.
    namespace: str = ""
    is_dead: bool = False
    entrypoint: str = ""
    start_time: int = 0  #: ms since epoch
    end_time: int = 0  #: ms since epoch, 0 while it lives
    metadata: dict[str, str] = {}
    runtime_env: dict[str, Any] = {}
    node_ip_address: str = ""
    pid: str = ""


class DriverTable:
    """Every driver but the internal ones, by its own id and by the submission that started it."""

    def __init__(self) -> None:
        self._entries: dict[str, DriverEntry] = {}
        self._last_drivers: dict[str, DriverInfo] = {}
        self._jobs: dict[str, DriverJob] = {}
        self._sorted_jobs: list[DriverJob] | None = None

    def driver_of(self, submission_id: str) -> DriverInfo | None:
        """Return the last driver that a job started: the one with the highest id."""
        return self._last_drivers.get(submission_id)

    def submission_of(self, job_id: str) -> str | None:
        """Return the submission that started a driver, whichever of its drivers it is."""
        entry = self._entries.get(job_id)
        return entry.submission_id if entry else None

    def job(self, job_id: str) -> DriverJob | None:
        """Return a driver that no submission started."""
        return self._jobs.get(job_id)

    def jobs(self) -> list[DriverJob]:
        """Return the drivers that no submission started, by their ids. Don't change the list."""
        if self._sorted_jobs is None:
            self._sorted_jobs = [self._jobs[job_id] for job_id in sorted(self._jobs)]
        return self._sorted_jobs

    def ids(self) -> set[str]:
        """Return the ids of all drivers: a copy."""
        return set(self._entries)

    def update(self, entries: Iterable[DriverEntry]) -> set[str]:
        """Take over what changed, or part of a full list.

        A driver that is known to be dead stays so: a list may have been made before it died.

        Returns:
            The submissions whose last driver is another now.
        """
        changed = {entry.submission_id for entry in entries if self._put(entry)}
        return {submission_id for submission_id in changed if submission_id is not None}

    def forget(self, job_ids: Iterable[str]) -> set[str]:
        """Drop drivers that Ray has forgotten. Returns as `update` does."""
        gone = [self._entries.pop(job_id) for job_id in job_ids if job_id in self._entries]
        changed: set[str] = set()
        for entry in gone:
            self._jobs.pop(entry.job_id, None)
            last = self._last_drivers.get(entry.submission_id or "")
            if last is not None and last.id == entry.job_id:
                changed.add(entry.submission_id or "")
        for submission_id in changed:
            del self._last_drivers[submission_id]
        if changed:
            for entry in self._entries.values():
                if entry.submission_id in changed:
                    self._link(entry.submission_id, _info(entry))
        self._sorted_jobs = None
        return changed

    def _put(self, entry: DriverEntry) -> bool:
        known = self._entries.get(entry.job_id)
        if known is not None and (known.is_dead or known == entry):
            return False
        if entry.namespace.startswith(INTERNAL_NAMESPACE_PREFIX):
            return False
        self._entries[entry.job_id] = entry
        if entry.submission_id:
            return self._link(entry.submission_id, _info(entry))
        self._jobs[entry.job_id] = driver_job(
            driver=_info(entry),
            is_dead=entry.is_dead,
            entrypoint=entry.entrypoint,
            start_time=entry.start_time,
            end_time=entry.end_time,
            metadata=entry.metadata,
            runtime_env=entry.runtime_env,
        )
        self._sorted_jobs = None
        return True

    def _link(self, submission_id: str, driver: DriverInfo) -> bool:
        last = self._last_drivers.get(submission_id)
        if last is not None and (last.id > driver.id or last == driver):
            return False
        self._last_drivers[submission_id] = driver
        return True


def _info(entry: DriverEntry) -> DriverInfo:
    return DriverInfo(entry.job_id, entry.node_ip_address, entry.pid)
