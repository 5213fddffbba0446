"""What is in the cluster's KV of jobs, read from outside."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from ray_jobs import JobSubmissionClient
from tests.cluster import BIN, Cluster

TIMEOUT_S = 60.0
PROGRAM = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
namespace, prefix = sys.argv[2].encode(), sys.argv[3].encode()
print(json.dumps({
    key.decode()[len(prefix):]: json.loads(client.internal_kv_get(key, namespace))
    for key in client.internal_kv_keys(prefix, namespace)
}))
"""


def stored(cluster: Cluster, namespace: str, prefix: str) -> dict[str, dict[str, Any]]:
    """Return the JSON under each key with a prefix, by what is behind it."""
    done = subprocess.run(
        [str(BIN / "python"), "-c", PROGRAM, cluster.gcs_address, namespace, prefix],
        env=cluster.env,
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def check_kv_is_as_listed(cluster: Cluster) -> None:
    """Hold records and mirror, none of whose jobs lives, to what the manager tells of each."""
    records = stored(cluster, "ray_jobs", "job:")
    mirror = stored(cluster, "job", "_ray_internal_job_info_")
    with JobSubmissionClient(cluster.address) as client:
        listed = {each: info for each, info in client.list_jobs().items() if info.submission_id}
    assert records.keys() == listed.keys() == mirror.keys()
    for submission_id, info in listed.items():
        told = (info.status.value, info.driver_exit_code, info.start_time, info.end_time)
        for found in (records[submission_id], mirror[submission_id]):
            fields = ("status", "driver_exit_code", "start_time", "end_time")
            assert tuple(found.get(name) for name in fields) == told, submission_id
