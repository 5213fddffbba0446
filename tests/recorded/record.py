"""Records what a manager of this version stores, says and is told, for later versions to read.

    python -m tests.recorded.record tests/recorded/0.1.0.json

Of a real cluster: jobs in every state, and some that end while their manager hangs.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray_jobs import JobSubmissionClient
from ray_jobs.claims import VERSION
from ray_jobs.keeper.clock import BOOT_ID
from ray_jobs.manager.supervisors import Supervisors
from ray_jobs.models import JobStatus
from ray_jobs.records import (
    Change,
    ChangeBatch,
    ErrorBody,
    ManagerReply,
    decode_record,
    encode_message,
)
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.faults.processes import start_waiting_job, titled
from tests.faults.stored import stored
from tests.waiting import wait_until

ELSEWHERE = {"elsewhere": 0.01}
#: Asks each supervisor how the attempt of a job ended, as a manager does.
PROGRAM = """
import json, sys
import ray
ray.init(address=sys.argv[1], namespace=sys.argv[2], log_to_driver=False)
found = {}
for actor in ray.util.list_named_actors(all_namespaces=True):
    if not actor["name"].startswith(("ray_jobs_supervisor_", "_ray_internal_job_actor_placed")):
        continue
    handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
    place = ray.get(handle.describe.remote(1))  # in the name of the only manager that there was
    for attempt in place["attempts"]:
        report = ray.get(handle.wait.remote(attempt))
        found[attempt] = {"name": actor["name"], "place": place, "report": report}
print(json.dumps(found))
"""


def orders_of(records: dict[str, Any]) -> dict[str, Any]:
    """Return what a supervisor is told of each job."""
    supervisors = object.__new__(Supervisors)  # which needs a cluster, but for its orders
    supervisors.__dict__.update(
        _default_env={"RAY_API_SERVER_ADDRESS": "http://192.0.2.1:8265"},
        _drop_env=["RAY_RAYLET_PID"],
        _drops_copied_logs=False,
    )
    return {
        name: supervisors.order(decode_record(json.dumps(record).encode()))
        for name, record in records.items()
    }


def messages() -> dict[str, ChangeBatch | ManagerReply]:
    """Return what goes between manager and face."""
    batch = ChangeBatch(3, 17, [Change(16, "a", b"{}"), Change(17, "b", None)], more=True)
    error = ErrorBody("job_not_found", "Job a does not exist")
    return {"batch": batch, "reply": ManagerReply(error=error, value="a", batch=batch)}


def runs(client: JobSubmissionClient, submission_id: str) -> bool:
    return client.get_job_status(submission_id) is JobStatus.RUNNING


def submit_all(client: JobSubmissionClient, folder: Path) -> None:
    env = {"env_vars": {"GREETING": "hello", "RAY_JOB_STOP_WAIT_TIME_S": "1"}}
    ended = [
        client.submit_job(entrypoint="echo $GREETING", submission_id="succeeded", runtime_env=env),
        client.submit_job(entrypoint="echo why; exit 3", submission_id="failed"),
        client.submit_job(
            entrypoint="seq 9",
            submission_id="bounded",
            max_log_bytes=2**21,
            metadata={"owner": "tests"},
        ),
        client.submit_job(
            entrypoint="echo there", submission_id="elsewhere", entrypoint_resources=ELSEWHERE
        ),
        client.submit_job(entrypoint="/bin/false; kill -9 $$", submission_id="killed"),
    ]
    for each in ended:
        client.wait_until_finish(each, timeout=60)
    stopped, _ = start_waiting_job(client, folder / "never")
    client.stop_job(stopped)
    client.wait_until_finish(stopped, timeout=60)
    client.submit_job(
        entrypoint="true",
        submission_id="pending",
        entrypoint_num_cpus=1000,
        entrypoint_label_selector={"a": "b"},
    )
    client.submit_job(
        entrypoint=f"while [ ! -e {folder}/go ]; do sleep 0.05; done; echo bye; exit 4",
        submission_id="placed",
        entrypoint_num_cpus=0.5,
        entrypoint_resources=ELSEWHERE,
    )
    wait_until(functools.partial(runs, client, "placed"), "it runs", 60)
    for code in (0, 7):
        client.submit_job(
            entrypoint=f"while [ ! -e {folder}/go ]; do sleep 0.05; done; exit {code}",
            submission_id=f"running-{code}",
        )
    for each in ("running-0", "running-7"):
        wait_until(functools.partial(runs, client, each), "it runs", 60)


def record(cluster: Cluster, folder: Path) -> dict[str, Any]:
    with JobSubmissionClient(cluster.address) as client:
        submit_all(client, folder)
        time.sleep(2)  # the mirror follows
        before = stored(cluster, "ray_jobs", "job:")
        mirror = stored(cluster, "job", "_ray_internal_job_info_")
        [manager] = titled("ray::JobManager")
        os.kill(manager, signal.SIGSTOP)
        try:
            (folder / "go").touch()
            done = subprocess.run(
                [str(BIN / "python"), "-c", PROGRAM, cluster.gcs_address, "_ray_internal_x"],
                env=cluster.env,
                stdout=subprocess.PIPE,
                check=True,
            )
            reports = json.loads(done.stdout.splitlines()[-1])
        finally:
            os.kill(manager, signal.SIGCONT)
        for each in ("placed", "running-0", "running-7"):
            client.wait_until_finish(each, timeout=60)
        time.sleep(2)
        after = stored(cluster, "ray_jobs", "job:")
    return {
        "version": VERSION,
        "records": before,
        "mirror": mirror,
        "reports": reports,
        "records_later": {each: after[each] for each in ("placed", "running-0", "running-7")},
        "orders": orders_of(before),
        "messages": {
            name: base64.b64encode(encode_message(each)).decode()
            for name, each in messages().items()
        },
    }


def main() -> None:
    target = Path(sys.argv[1])
    with plugin(enabled=True), running_cluster(cpus=2) as cluster:
        cluster.add_node(cpus=1, resources={"elsewhere": 1})
        found = record(cluster, cluster.folder)
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    text = text.replace(str(cluster.folder), "/tmp/cluster").replace(BOOT_ID, "a-boot")
    target.write_text(re.sub(r"http://[0-9.]+:", "http://192.0.2.1:", text))


if __name__ == "__main__":
    main()
