"""A cluster whose GCS keeps its state in a Redis, so that GCS and head may die and come back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.cluster import BIN, Cluster, plugin
from tests.daemons import Daemon
from tests.faults.late_answers import LateAnswers
from tests.faults.processes import ATTEMPT_VARIABLE, processes, runs, send
from tests.waiting import wait_until

#: In the environment of every process of a cluster.
MARK_VARIABLE = "RAY_JOBS_TEST_CLUSTER"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
#: Who doesn't end by SIGTERM within this time is killed.
GRACE_S = 8.0


class Redis(Daemon):
    """A Redis of its own, which has on disk whatever it has acknowledged."""

    name = "redis"
    question = b"PING\r\n"
    answer = b"+PONG"

    def command(self) -> Sequence[str]:
        options = f"--bind 127.0.0.1 --port {self.port} --dir {self.folder} --appendonly yes"
        return ["redis-server", *options.split(), "--save", ""]


class LastingCluster(Cluster):
    """A head node that can be stopped and started again.

    Its processes are watched by nobody: `ray start --block` would end the node with its GCS.

    Args:
        answers: Between the GCS and its Redis.
    """

    def __init__(
        self, env: dict[str, str], folder: Path, redis: Redis, answers: LateAnswers
    ) -> None:
        self._mark = str(folder)
        redis_env = {
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{answers.port}",
            MARK_VARIABLE: self._mark,
        }
        super().__init__({**redis_env, **env}, folder)
        self.redis = redis
        self.redis_answers = answers

    def _start_node(self, name: str, *arguments: str, inside: Sequence[str] = ()) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            done = subprocess.run(
                [
                    *inside,
                    str(BIN / "ray"),
                    "start",
                    "--dashboard-agent-listen-port=0",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    *arguments,
                ],
                env=self.env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                timeout=START_TIMEOUT_S,
                check=False,
            )
        assert done.returncode == 0, self.output()

    def pids(self) -> list[int]:
        """Return the processes of Ray's, and ours but those of jobs."""
        found = []
        mark = f"{MARK_VARIABLE}={self._mark}".encode()
        for entry in processes():
            with contextlib.suppress(OSError):
                environ = (entry / "environ").read_bytes()
                if mark in environ and ATTEMPT_VARIABLE not in environ and runs(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def named(self, name: str) -> list[int]:
        """Return this cluster's processes by what `ps` calls them."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    found.append(pid)
        return found

    def gcs(self) -> Gcs:
        return Gcs(self)

    def terminate(self) -> None:
        """Stop the head as `ray stop` does, and return once its processes are gone."""
        for pid in sorted(self.pids(), key=lambda each: each not in self.named("raylet")):
            send(pid, signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.pids(), "the end of the head", GRACE_S)
        self.kill()

    def kill(self) -> None:
        """Kill the processes of the head, all at once, and return once they are gone."""
        while pids := self.pids():
            for pid in pids:
                send(pid)
            wait_until(lambda: not any(map(runs, pids)), "deaths", STOP_TIMEOUT_S)

    def stop(self) -> None:
        self.kill()
        super().stop()


class Gcs:
    """The GCS of a cluster, by the command line with which Ray started it."""

    def __init__(self, cluster: LastingCluster) -> None:
        [self.pid] = cluster.named("gcs_server")
        process = Path(f"/proc/{self.pid}")
        self._command = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        items = (process / "environ").read_bytes().rstrip(b"\0").split(b"\0")
        self._env = {name: value for name, _, value in (item.partition(b"=") for item in items)}
        self._cwd = os.readlink(process / "cwd")
        self._cluster = cluster

    def kill(self) -> None:
        send(self.pid)
        wait_until(lambda: not runs(self.pid), "the end of the GCS", STOP_TIMEOUT_S)

    def start(self) -> None:
        """Run the command line again, and return once it listens."""
        with (self._cluster.folder / "gcs.out").open("ab") as log:
            # A child of nobody here, as those that `ray start` leaves behind.
            subprocess.run(
                [b"setsid", b"--fork", *self._command],
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
        wait_until(self._listens, "the GCS", START_TIMEOUT_S)
        [self.pid] = self._cluster.named("gcs_server")

    def lives(self) -> bool:
        return runs(self.pid)

    def _listens(self) -> bool:
        address = ("127.0.0.1", self._cluster.port)
        with contextlib.suppress(OSError), socket.create_connection(address, 1):
            return True
        return False


@contextlib.contextmanager
def lasting_cluster(
    env: dict[str, str] | None = None, *, cpus: int = 2
) -> Iterator[LastingCluster]:
    """Run a cluster with the plugin, and with a Redis behind it."""
    folder = Path(tempfile.mkdtemp(prefix="rjt-", dir="/tmp"))
    redis_folder = Path(tempfile.mkdtemp(prefix="rjt-redis-", dir="/tmp"))
    with (
        plugin(enabled=True),
        Redis(redis_folder) as redis,
        LateAnswers(redis.port) as answers,
    ):
        cluster = LastingCluster(env or {}, folder, redis, answers)
        try:
            cluster.start(cpus=cpus)
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(redis_folder, ignore_errors=True)
