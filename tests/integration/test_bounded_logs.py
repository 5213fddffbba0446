"""Jobs whose logs may take so much and no more: `max_log_bytes`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from ray_jobs import InvalidRequest, JobSubmissionClient
from ray_jobs.models import JobStatus
from tests.cluster import Cluster
from tests.faults.processes import kill_titled
from tests.waiting import wait_until

MAX_BYTES = 4 * 1024 * 1024
#: What may be printed before the log is looked at again, on a busy machine.
SLACK_BYTES = 64 * 1024 * 1024
LOOK_S = 0.01
LINES = 20_000_000  # 178 MB
COMMAND = f"seq {LINES}"
NOTICE = re.compile(r"\n\[ray-jobs\] [\d,]+ bytes of this log were dropped here [^\n]*\n")


def log_of(cluster: Cluster, job_id: str) -> Path:
    return cluster.logs_dir / f"job-driver-{job_id}.log"


def taken(path: Path) -> int:
    # A job is RUNNING from a moment before its log is there.
    return path.stat().st_blocks * 512 if path.exists() else 0


def check(text: str) -> None:
    """The beginning, a line that tells of the gap, and every line after it to the last."""
    found = NOTICE.search(text)
    assert found is not None
    before = text[: found.start()].splitlines()
    after = text[found.end() :].splitlines()
    assert before[1:4] == ["1", "2", "3"]
    assert after[-1] == str(LINES)
    numbers = [int(line) for line in after[1:]]
    assert numbers == list(range(numbers[0], LINES + 1))


@pytest.mark.parametrize("cpus", [None, 1], ids=["pooled", "own supervisor"])
def test_a_fast_writer(client: JobSubmissionClient, cluster: Cluster, cpus: int | None) -> None:
    job_id = client.submit_job(
        entrypoint=COMMAND, max_log_bytes=MAX_BYTES, entrypoint_num_cpus=cpus
    )
    wait_until(lambda: client.get_job_status(job_id) is not JobStatus.PENDING, "it runs", 60)
    highest = 0
    while client.get_job_status(job_id) is JobStatus.RUNNING:
        highest = max(highest, taken(log_of(cluster, job_id)))
        time.sleep(LOOK_S)  # the server needs the core that the writer leaves
    assert client.get_job_status(job_id) is JobStatus.SUCCEEDED
    assert highest <= MAX_BYTES + SLACK_BYTES
    # When its end is told.
    assert taken(log_of(cluster, job_id)) <= MAX_BYTES
    assert log_of(cluster, job_id).stat().st_size > 100_000_000
    check(client.get_job_logs(job_id))
    check("".join(client.tail_job_logs(job_id)))
    assert client.get_job_details(job_id).max_log_bytes == MAX_BYTES


def test_each_byte_comes_or_is_told_of(client: JobSubmissionClient, cluster: Cluster) -> None:
    job_id = client.submit_job(entrypoint=COMMAND, max_log_bytes=MAX_BYTES)
    text = "".join(client.tail_job_logs(job_id))
    notices = NOTICE.findall(text)
    assert notices
    dropped = sum(int(each.split()[1].replace(",", "")) for each in notices)
    came = len(text) - sum(map(len, notices))
    assert came + dropped == log_of(cluster, job_id).stat().st_size


def test_followed_while_it_is_bounded(client: JobSubmissionClient) -> None:
    """Lines are in order and whole, and missing only where it says so."""
    job_id = client.submit_job(entrypoint=COMMAND, max_log_bytes=MAX_BYTES)
    last = 0
    for position, part in enumerate(NOTICE.split("".join(client.tail_job_logs(job_id)))):
        # The first line is the server's own; around what was dropped lines are cut.
        numbers = [int(line) for line in part.split("\n")[1:-1]]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else position > 0
        assert not numbers or numbers[0] > last
        last = numbers[-1] if numbers else last
    assert last == LINES


def test_it_is_bounded_after_its_supervisor_died(
    client: JobSubmissionClient, cluster: Cluster, tmp_path: Path
) -> None:
    command = f"echo begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; {COMMAND}"
    job_id = client.submit_job(entrypoint=command, max_log_bytes=MAX_BYTES)
    wait_until(lambda: "begun" in client.get_job_logs(job_id), "it runs", 30)
    kill_titled("ray::JobSupervisor")
    (tmp_path / "go").touch()
    assert client.wait_until_finish(job_id, timeout=120).status is JobStatus.SUCCEEDED
    assert taken(log_of(cluster, job_id)) <= MAX_BYTES


@pytest.mark.parametrize("wrong", [0, -1, 1000, True, 2.5, 2**64])
def test_bounds_that_can_not_be(client: JobSubmissionClient, wrong: int) -> None:
    with pytest.raises(InvalidRequest, match="max_log_bytes"):
        client.submit_job(entrypoint="true", max_log_bytes=wrong)
