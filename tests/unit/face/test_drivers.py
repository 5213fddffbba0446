"""The driver table: several drivers in one job, drivers of their own, internal ones."""

from __future__ import annotations

import msgspec
from ray_jobs.dashboard_module.drivers import DriverEntry, DriverTable

from ray_jobs.models import DriverInfo, JobStatus


def entry(job_id: str, submission_id: str | None = None, **fields: object) -> DriverEntry:
    return DriverEntry(
        job_id=job_id, submission_id=submission_id, node_ip_address="10.0.0.1", pid="7", **fields
    )


def test_the_last_driver_stands_for_its_job_and_each_one_leads_to_it() -> None:
    table = DriverTable()
    changed = table.update([entry("03000000", "a"), entry("02000000", "a"), entry("04000000", "b")])
    assert changed == {"a", "b"}
    assert table.driver_of("a") == DriverInfo("03000000", "10.0.0.1", "7")
    assert table.submission_of("02000000") == table.submission_of("03000000") == "a"
    assert table.jobs() == []


def test_only_another_last_driver_is_a_change() -> None:
    table = DriverTable()
    table.update([entry("03000000", "a")])
    assert table.update([entry("02000000", "a")]) == set()
    assert table.update([entry("03000000", "a", is_dead=True)]) == set()
    assert table.update([entry("05000000", "a")]) == {"a"}


def test_internal_drivers_are_no_jobs() -> None:
    table = DriverTable()
    table.update([entry("01000000", namespace="_ray_internal_dashboard"), entry("02000000")])
    assert [job.id for job in table.jobs()] == ["02000000"]
    assert table.job("01000000") is None


def test_a_driver_of_its_own_is_a_job() -> None:
    table = DriverTable()
    table.update([entry("02000000", entrypoint="python x.py", start_time=5)])
    job = table.job("02000000")
    assert job is not None
    assert job.status is JobStatus.RUNNING
    shown = msgspec.json.decode(job.info_json(redact=False))
    assert shown["type"] == "DRIVER"
    assert shown["job_id"] == "02000000"
    assert shown["submission_id"] is None
    assert shown["driver_info"] == {"id": "02000000", "node_ip_address": "10.0.0.1", "pid": "7"}
    assert (shown["entrypoint"], shown["start_time"], shown["end_time"]) == ("python x.py", 5, 0)


def test_the_dead_stay_dead() -> None:
    table = DriverTable()
    table.update([entry("02000000", is_dead=True, end_time=9)])
    table.update([entry("02000000")])  # from a list that was made before it died
    job = table.job("02000000")
    assert job is not None
    assert job.status is JobStatus.SUCCEEDED


def test_a_forgotten_driver_gives_way_to_the_one_before() -> None:
    table = DriverTable()
    table.update([entry("02000000", "a"), entry("03000000", "a"), entry("04000000")])
    assert table.forget({"03000000", "04000000", "09000000"}) == {"a"}
    assert table.driver_of("a") == DriverInfo("02000000", "10.0.0.1", "7")
    assert table.jobs() == []
    assert table.forget({"02000000"}) == {"a"}
    assert table.driver_of("a") is None
    assert table.ids() == set()
