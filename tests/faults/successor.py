"""A successor of the manager that claims its epoch and does nothing else."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from ray_jobs.claims import VERSION, Claim
from ray_jobs.store import SETTLING_S
from tests.cluster import BIN, Cluster

END_TIMEOUT_S = 20.0
#: Claims the next epoch, as a manager does. Tells what is stored when a manager would begin to
#: read, and again in the moment in which the predecessor is gone.
PROGRAM = """
import json, os, select, sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
predecessor = os.pidfd_open(int(sys.argv[2]))
ours, rays = b"ray_jobs", b"job"
def tell():
    print(json.dumps({
        key.decode(): client.internal_kv_get(key, namespace).decode()
        for namespace, prefix in ((ours, b"job:"), (rays, b"_ray_internal_job_info_"))
        for key in client.internal_kv_keys(prefix, namespace)
    }), flush=True)
epochs = [int(key.split(b":")[1]) for key in client.internal_kv_keys(b"epoch:", ours)]
claim = b"epoch:%d" % (max(epochs) + 1)
assert client.internal_kv_put(claim, sys.argv[3].encode(), False, ours) == 1, "it is taken"
time.sleep(float(sys.argv[4]))
tell()
poller = select.poll()
poller.register(predecessor, select.POLLIN)
assert poller.poll(float(sys.argv[5]) * 1000), "the predecessor stays"
tell()
"""


class Successor:
    """Claims the epoch after that of a cluster's manager, from a process of its own.

    Args:
        manager: The pid of the manager, which nobody tells.
    """

    def __init__(self, cluster: Cluster, manager: int) -> None:
        claim = Claim(VERSION, "0" * 32).encoded().decode()
        arguments = [cluster.gcs_address, manager, claim, SETTLING_S, END_TIMEOUT_S]
        self._process = subprocess.Popen(
            [str(BIN / "python"), "-c", PROGRAM, *map(str, arguments)],
            env=cluster.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        #: Each record, and its mirror, when a successor would begin to read.
        self.found = self._told()

    def found_later(self) -> dict[str, Any]:
        """Wait until the manager is gone. Returns what it left."""
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it has failed: {self._process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Successor:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
