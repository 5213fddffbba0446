"""Writes records of jobs that have ended straight into a cluster's KV, as the servers would.

Running a hundred thousand jobs would take the stock server a day. A process of its own, since it
connects to the cluster: `python -m benchmarks.kv_fill GCS_ADDRESS FIRST END OURS|STOCK`. For the
stock server only Ray's own form of the records is written. One in a hundred is STOPPED, one in ten
FAILED, the rest SUCCEEDED.
"""

from __future__ import annotations

import asyncio
import sys
import time

from ray_jobs import _ray
from ray_jobs.claims import KV_NAMESPACE
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import JobRecord, encode_record, mirror_json
from ray_jobs.store import RECORD_PREFIX

#: Writes on their way at once.
MAX_WRITING = 64
JOB_DURATION_MS = 90_000
STOPPED_IN = 100
FAILED_IN = 10


def job_id(number: int) -> str:
    return f"filled-{number:06d}"


def record_of(number: int, now_ms: int) -> JobRecord:
    """Return a job as a user's might be: one a second, the last one just now."""
    status = JobStatus.SUCCEEDED
    if number % STOPPED_IN == 1:
        status = JobStatus.STOPPED
    elif number % FAILED_IN == 2:
        status = JobStatus.FAILED
    failed = status is JobStatus.FAILED
    return JobRecord(
        submission_id=job_id(number),
        entrypoint=f"python train.py --epochs 10 --seed {number}",
        status=status,
        message="Job entrypoint command failed with exit code 1" if failed else None,
        error_type=JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR if failed else None,
        start_time=now_ms - JOB_DURATION_MS,
        end_time=now_ms,
        metadata={"team": "search", "run": str(number)},
        runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"},
        driver_agent_http_address="http://127.0.0.1:52365",
        driver_node_id="0" * 56,
        driver_exit_code=1 if failed else 0,
        attempt=f"{number:032x}",
        request_key=f"{number:032x}",
    )


async def fill(first: int, end: int, is_ours: bool) -> None:
    kv, known_fields = _ray.Kv(), _ray.mirror_fields()
    now_ms = int(time.time() * 1000)
    numbers = iter(range(first, end))

    async def write() -> None:
        for number in numbers:
            record = record_of(number, now_ms - (end - number) * 1000)
            mirror = mirror_json(record, known_fields)
            await kv.put(MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + record.submission_id, mirror)
            if is_ours:
                key = RECORD_PREFIX + record.submission_id
                await kv.put(KV_NAMESPACE, key, encode_record(record))

    await asyncio.gather(*(write() for _ in range(MAX_WRITING)))


if __name__ == "__main__":
    _ray.connect(sys.argv[1])
    asyncio.run(fill(int(sys.argv[2]), int(sys.argv[3]), is_ours=sys.argv[4] == "OURS"))
