"""The disk under the logs is full, and has room again."""

from __future__ import annotations

import contextlib
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import JobInfo, JobSubmissionClient
from ray_jobs.manager.transitions import LOG_MAY_BE_CUT_OFF
from ray_jobs.models import CUT_OFF_NOTICE, JobStatus
from tests.cluster import Cluster, plugin, running_cluster
from tests.disks import fill, small_disk
from tests.faults.judging import judged
from tests.faults.processes import kill_titled, runs, start_waiting_job, titled
from tests.faults.supervisors import MANAGER, SUPERVISOR
from tests.faults.table import Row, report, rounds, seeded
from tests.waiting import wait_until

FAULT = "disk full under the logs"
DISK_MIB = 64
#: Before manager and supervisors are killed, and between.
PAUSE_S = (0.0, 0.5)
#: Prints until there is no room, and tells by its exit code what it was told.
PRINTS_FOR_EVER = """
    import errno
    try:
        while True:
            print("x" * 1000, flush=True)
    except OSError as error:
        code = 7 if error.errno == errno.ENOSPC else 8
    # Not by the interpreter's own end, which would try to write what is left.
    import os
    os._exit(code)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with (
        contextlib.ExitStack() as disks,
        plugin(enabled=True),
        running_cluster(
            cpus=2, prepare=lambda folder: disks.enter_context(small_disk(folder, DISK_MIB))
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        yield client


def is_running(client: JobSubmissionClient, job_id: str) -> bool:
    return client.get_job_status(job_id) is JobStatus.RUNNING


def ended(client: JobSubmissionClient, job_id: str) -> JobInfo:
    return client.wait_until_finish(job_id, timeout=60)


@rounds(2)
def test_full_disk(cluster: Cluster, client: JobSubmissionClient, tmp_path: Path) -> None:
    rng = seeded(FAULT)
    folders = [tmp_path / name for name in ("ends", "adopted", "goes-on")]
    for each in folders:
        each.mkdir()
    [ends, adopted, goes_on] = [start_waiting_job(client, folder) for folder in folders]
    script = tmp_path / "prints.py"
    script.write_text(textwrap.dedent(PRINTS_FOR_EVER))
    go = tmp_path / "go"
    gate = f"while [ ! -e {go} ]; do sleep 0.05; done"
    prints = client.submit_job(entrypoint=f"{gate}; exec python {script}")
    fills = client.submit_job(entrypoint=f"{gate}; cat /dev/zero")
    wait_until(lambda: is_running(client, prints) and is_running(client, fills), "they run", 30)
    dashboard = titled("ray-dashboard")
    go.touch()

    # The programs themselves are told, nobody ends them, and their ends are known.
    info = ended(client, prints)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 7)
    assert LOG_MAY_BE_CUT_OFF in (info.message or "")
    info = ended(client, fills)
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 1)
    assert LOG_MAY_BE_CUT_OFF in (info.message or "")
    fill(cluster.folder)
    (folders[0] / "go").touch()
    info = ended(client, ends[0])
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5)

    # A new job finds the room that another gave back, or is told why it isn't started.
    def is_started() -> bool:
        fill(cluster.folder)
        info = ended(client, client.submit_job(entrypoint="true"))
        started = info.status is JobStatus.SUCCEEDED
        assert started or "No space left on device" in (info.message or "")
        return started

    wait_until(lambda: not is_started(), "there is no room", 30)

    # Ray starts no actor while the disk is full: manager and supervisors come back afterwards.
    for title in rng.sample((SUPERVISOR, MANAGER), 2):
        time.sleep(rng.uniform(*PAUSE_S))
        assert kill_titled(title)
    fill(cluster.folder)
    (folders[1] / "go").touch()
    wait_until(lambda: not runs(adopted[1]), "its end", 10)
    began = time.monotonic()
    assert is_running(client, adopted[0])  # reads go on
    read_s = time.monotonic() - began
    assert runs(goes_on[1])
    assert titled("ray-dashboard") == dashboard

    # There is room again.
    for path in cluster.folder.glob("session_2*/logs/job-driver-*"):
        os.truncate(path, 0)
    (cluster.folder / "filler").unlink()
    info = ended(client, adopted[0])
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5)
    assert LOG_MAY_BE_CUT_OFF in (info.message or "")
    for text in (client.get_job_logs(adopted[0]), "".join(client.tail_job_logs(adopted[0]))):
        assert text.endswith(CUT_OFF_NOTICE)
    began = time.monotonic()
    fine = client.submit_job(entrypoint="echo fine")
    submission_s = time.monotonic() - began
    info = ended(client, fine)
    assert (info.status, info.message) == (JobStatus.SUCCEEDED, "Job finished successfully.")
    (folders[2] / "go").touch()
    info = ended(client, goes_on[0])
    assert (info.status, info.driver_exit_code) == (JobStatus.FAILED, 5)
    assert LOG_MAY_BE_CUT_OFF not in (info.message or "")
    assert CUT_OFF_NOTICE not in client.get_job_logs(goes_on[0])
    failed = JobStatus.FAILED
    expected: dict[str, tuple[JobStatus, int | None]] = {prints: (failed, 7), fills: (failed, 1)}
    expected |= dict.fromkeys((ends[0], adopted[0], goes_on[0]), (failed, 5))
    verdict = judged(client, expected, logs_are_whole=False)
    report(Row(FAULT, 1, verdict, read_s, submission_s))
