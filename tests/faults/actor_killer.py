"""A driver that ends supervisors in order, by `ray.kill`. A process of its own."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator

from tests.cluster import Cluster

POOLED, OWN = "pooled", "own"
#: In the names of supervisors that Ray can't start yet: there is nothing to end.
QUEUED = "queued-"


class ActorKiller:
    """The driver's process, told what to do line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def kill_one(self, kind: str, choice: int) -> bool:
        """End a supervisor, of the pool or of a job's own. Returns whether there was one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kind} {choice}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer in ("killed", "none"), answer
        return answer == "killed"


@contextlib.contextmanager
def actor_killer(cluster: Cluster) -> Iterator[ActorKiller]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, cluster.gcs_address],
        env=cluster.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield ActorKiller(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def serve(address: str) -> None:
    import ray
    from ray.util import list_named_actors

    from ray_jobs import _ray

    ray.init(address=address, log_to_driver=False)
    wanted = {
        POOLED: (_ray.NAMESPACE, _ray.POOLED_SUPERVISOR_NAME_PREFIX),
        OWN: (_ray.SUPERVISOR_NAMESPACE, _ray.SUPERVISOR_NAME_PREFIX),
    }
    for line in sys.stdin:
        kind, choice = line.split()
        namespace, prefix = wanted[kind]
        names = sorted(
            each["name"]
            for each in list_named_actors(all_namespaces=True)
            if each["namespace"] == namespace
            and each["name"].startswith(prefix)
            and QUEUED not in each["name"]
        )
        answer = "none"
        if names:
            name = random.Random(int(choice)).choice(names)
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                ray.kill(ray.get_actor(name, namespace=namespace))
                answer = "killed"
        print(answer, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    # Ray's warnings are no answers.
    with contextlib.redirect_stdout(sys.stderr):
        serve(sys.argv[1])
