"""Finished jobs leave for the archive by count and age, and nothing of them is lost."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs.errors import JobNotFound
from ray_jobs.manager.retention import ARCHIVE_FOLDER, GATHER_S
from ray_jobs.models import JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.judging import orphans
from tests.faults.processes import kill_titled
from tests.faults.table import Row, Verdict, report, seeded, times
from tests.ftp import FtpServer
from tests.waiting import wait_until

KEPT_JOBS = 15
KEPT_S = 10
MAX_LOGS_BYTES = 10_000_000
MANAGER = "ray::JobManager"
KILLS = 3
LEAVING_JOBS = 10
#: A command, and what it prints: to be sent takes a while.
LARGE = ("head -c 20000000 /dev/zero | tr '\\0' x", "x" * 20_000_000)
#: A batch is gathered, written, and removed; after trouble, when it is tried again.
PATIENCE_S = 30.0


class Retained:
    """A cluster that keeps few jobs, and the logs of all jobs that it was given.

    Args:
        archive: Where the files of its archive are.
    """

    def __init__(self, cluster: Cluster, client: JobSubmissionClient, archive: Path) -> None:
        self.cluster = cluster
        self.client = client
        self.archive = archive
        self.logs: dict[str, str] = {}

    def run(self, count: int) -> list[str]:
        """Run jobs that tell their names, and return once all have ended."""
        first = len(self.logs)
        names = [f"job-{number}" for number in range(first, first + count)]
        for name in names:
            self.submit(name)
        for name in names:
            self.until_ended(name)
        return names

    def submit(self, name: str, command: str = "", output: str = "") -> None:
        command = command or f"echo {name}"
        self.client.submit_job(entrypoint=command, submission_id=name)
        header = f"Running entrypoint for job {name}: {command}\n"
        self.logs[name] = header + (output or f"{name}\n")

    def until_ended(self, name: str) -> None:
        wait_until(lambda: name in self.ended(), f"{name} has ended", 60)

    def ended(self) -> set[str]:
        return self.listed(JobStatus.SUCCEEDED) | {each["submission_id"] for each in self.lines()}

    def listed(self, status: JobStatus | None = None) -> set[str]:
        return {
            each.submission_id or ""
            for each in self.client.list_jobs().values()
            if status is None or each.status is status
        }

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.archive.glob("*.jsonl")):
            found += [json.loads(line) for line in path.read_text().splitlines()]
        return found

    def until_few(self, most: int = KEPT_JOBS) -> None:
        wait_until(lambda: len(self.listed()) <= most, f"{most} jobs are listed", PATIENCE_S)

    def places(self) -> tuple[set[str], list[dict[str, Any]]]:
        """Return which jobs are listed, and the lines of the archive, while none is leaving."""
        listed: set[str] = set()
        lines: list[dict[str, Any]] = []

        def settled() -> bool:
            nonlocal listed, lines
            listed, lines = self.listed(), self.lines()
            return listed.isdisjoint(each["submission_id"] for each in lines)

        wait_until(settled, "each job is in one place", PATIENCE_S)
        return listed, lines

    def check(self) -> None:
        """Each job is in one place, listed or in the archive, with its log there."""
        listed, lines = self.places()
        archived = {each["submission_id"] for each in lines}
        assert listed | archived == set(self.logs)
        jobs = {(each["submission_id"], each["attempt"], each["end_time"]) for each in lines}
        assert len(jobs) == len(archived)
        for line in lines:
            text = (self.archive / line["log"]["name"]).read_text()
            assert text == self.logs[line["submission_id"]]
            assert line["status"] == "SUCCEEDED"
            assert line["driver_exit_code"] == 0
        for name in listed:
            try:
                assert self.client.get_job_logs(name) == self.logs[name]
            except JobNotFound:  # it has left by its age since
                assert name in {each["submission_id"] for each in self.lines()}


@pytest.fixture(scope="module")
def retained() -> Iterator[Retained]:
    env = {
        "RAY_JOBS_RETAIN_JOBS": str(KEPT_JOBS),
        "RAY_JOBS_RETAIN_S": str(KEPT_S),
        "RAY_JOBS_FINISHED_LOGS_MAX_BYTES": str(MAX_LOGS_BYTES),
    }
    with (
        plugin(enabled=True),
        running_cluster(env, cpus=2) as cluster,
        JobSubmissionClient(cluster.address) as client,
    ):
        yield Retained(cluster, client, cluster.logs_dir / ARCHIVE_FOLDER)


def test_by_count(retained: Retained) -> None:
    names = retained.run(40)
    retained.until_few()
    retained.check()
    # The oldest, and no more than those.
    ends = {each["submission_id"]: each["end_time"] for each in retained.lines()}
    by_count = [
        each for each in retained.lines() if each["archived_at"] < each["end_time"] + KEPT_S * 1000
    ]
    assert by_count
    assert len(retained.lines()) >= 40 - KEPT_JOBS
    kept_ends = [each.end_time or 0 for each in retained.client.list_jobs().values()]
    assert max(ends.values()) <= min(kept_ends)
    assert set(ends) <= set(names)


def test_an_id_that_has_left_may_be_used_again(retained: Retained) -> None:
    name = retained.lines()[0]["submission_id"]
    assert retained.client.submit_job(entrypoint="echo again", submission_id=name) == name
    assert retained.client.wait_until_finish(name, timeout=60).status is JobStatus.SUCCEEDED
    assert retained.client.get_job_logs(name).endswith(": echo again\nagain\n")
    retained.client.delete_job(name)  # not to be mixed up with the one before
    retained.check()


def test_the_manager_is_killed_in_between(retained: Retained) -> None:
    name = "manager killed while jobs leave for the archive"
    moments = seeded(name)
    kills = times(KILLS)
    for _ in range(kills):
        retained.run(LEAVING_JOBS * 2)
        time.sleep(moments.uniform(0.0, GATHER_S + 1.0))
        assert kill_titled(MANAGER)
    retained.until_few()
    retained.check()
    report(Row(name, kills, Verdict(kills * LEAVING_JOBS * 2, [], [], orphans())))


def test_a_broken_archive_is_mended(retained: Retained) -> None:
    away = retained.archive.with_name("away")
    retained.archive.rename(away)
    retained.archive.write_text("a file where the folder should be")
    try:
        names = [f"job-{number}" for number in range(len(retained.logs), len(retained.logs) + 20)]
        for name in names:
            retained.submit(name)
        wait_until(lambda: warnings(retained.cluster) == 1, "it is told", PATIENCE_S)
        before = retained.listed()
        for name in names:
            assert retained.client.wait_until_finish(name, timeout=60)
        assert retained.listed() == before
        assert set(names) <= before
    finally:
        retained.archive.unlink()
        away.rename(retained.archive)
    retained.until_few()
    retained.check()
    assert warnings(retained.cluster) == 1


def test_all_logs_together(retained: Retained) -> None:
    for number in range(4):
        name = f"large-{number}"
        retained.submit(name, "head -c 4000000 /dev/zero | tr '\\0' x", "x" * 4_000_000)
        assert retained.client.wait_until_finish(name, timeout=60)

    def is_removed(name: str) -> bool:
        return "was removed" in retained.client.get_job_logs(name)

    wait_until(lambda: is_removed("large-1"), "the oldest logs are removed", 10)
    assert "RAY_JOBS_FINISHED_LOGS_MAX_BYTES" in retained.client.get_job_logs("large-0")
    assert "10000000 bytes" in retained.client.get_job_logs("large-0")
    for name in ("large-2", "large-3"):
        assert retained.client.get_job_logs(name) == retained.logs[name]


def test_by_age(retained: Retained) -> None:
    wait_until(lambda: not retained.listed(), "all have left", KEPT_S + PATIENCE_S)
    lines = {each["submission_id"]: each for each in retained.lines()}
    assert set(lines) == set(retained.logs)
    last = lines["large-3"]
    assert last["archived_at"] >= last["end_time"] + KEPT_S * 1000
    assert (retained.archive / last["log"]["name"]).stat().st_size == len(retained.logs["large-3"])
    assert lines["large-0"]["log"] == {"name": None, "bytes": 0, "removed": True}
    assert list(retained.cluster.logs_dir.rglob("job-driver-large-*")) == []


@pytest.mark.long
def test_archive_on_another_machine(tmp_path: Path) -> None:
    """An FTP server, which shows files while they are sent, and breaks connections when it dies."""
    with FtpServer(tmp_path / "remote") as server, plugin(enabled=True):
        env = {"RAY_JOBS_RETAIN_JOBS": "0", "RAY_JOBS_ARCHIVE": server.url}
        with (
            running_cluster(env, cpus=2) as cluster,
            JobSubmissionClient(cluster.address) as client,
        ):
            remote = Retained(cluster, client, server.archive)
            remote.submit("large", *LARGE)
            remote.run(LEAVING_JOBS)
            wait_until(lambda: any(server.archive.rglob("*.log")), "a log is there", PATIENCE_S)
            assert kill_titled(MANAGER)
            server.kill()
            remote.submit("later")
            wait_until(lambda: warnings(cluster) == 1, "it is told", PATIENCE_S)
            server.start()
            remote.until_few(0)
            remote.check()


def warnings(cluster: Cluster) -> int:
    """Return how often a manager has told that the archive fails."""
    count = 0
    for path in Path(cluster.logs_dir).glob("worker-*.err"):
        with contextlib.suppress(FileNotFoundError):
            count += path.read_text(errors="replace").count("The archive of finished jobs, ")
    return count
