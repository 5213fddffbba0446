"""A real Ray cluster for tests: started and stopped as a child, other clusters untouched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ray_jobs.cli.local_cluster import free_ports
from tests.waiting import wait_until

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


def free_port() -> int:
    [port] = free_ports(1)
    return port


class Cluster:
    """A head node (`ray start --head --block`), and nodes that join it."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.folder = folder
        # At once: one that was looked for later could be the same.
        self.port, self.dashboard_port, self._client_port = free_ports(3)
        self.address = f"http://127.0.0.1:{self.dashboard_port}"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            # An environment that can't be built is tried three times by default: with `pip`, 20 s.
            "RUNTIME_ENV_RETRY_TIMES": "1",
            # For `stop` below alone: `ray start --block` drains its node when it gets SIGTERM, for
            # 30 s. `ray stop` doesn't: it sends its signals to Ray's processes themselves.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            **env,
        }
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._added = 0

    @property
    def gcs_address(self) -> str:
        return (self.folder / "ray_current_cluster").read_text().strip()

    @property
    def session_dir(self) -> Path:
        """Of the head. Not by `session_latest`: each worker that starts puts that link anew."""
        found = (path for path in self.folder.glob("session_*") if not path.is_symlink())
        return max(found, default=self.folder)

    @property
    def logs_dir(self) -> Path:
        return self.session_dir / "logs"

    @property
    def nodes(self) -> list[subprocess.Popen[bytes]]:
        """The commands that started the nodes, and look after them."""
        return self._nodes

    def start(
        self,
        *,
        cpus: int = 4,
        gpus: int = 0,
        resources: dict[str, float] | None = None,
        ip: str | None = None,
    ) -> None:
        """Start the head. `ip`: by which other hosts reach it."""
        self._start_node(
            "head",
            "--head",
            # Nothing scales here: the autoscaler's process costs each start and stop a second.
            "--no-monitor",
            f"--port={self.port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={self._client_port}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            f"--resources={json.dumps(resources or {})}",
            f"--temp-dir={self.folder}",
            *([f"--node-ip-address={ip}"] if ip else []),
        )
        wait_until(self.answers, f"the dashboard at {self.address}", START_TIMEOUT_S)

    def add_node(
        self,
        *,
        cpus: int = 1,
        resources: dict[str, float] | None = None,
        inside: Sequence[str] = (),
        ip: str | None = None,
        shares_files: bool = False,
    ) -> int:
        """Start a node that joins. Returns the id of the session that its Ray processes are in.

        Args:
            inside: The command that runs another one on a host of its own.
            ip: Of that host.
            shares_files: With the head, as Ray's nodes on one machine do by default.
        """
        self._added += 1
        name = f"node{self._added}"
        self.last_node_folder.mkdir()
        self._start_node(
            name,
            f"--address={self.gcs_address}",
            # Files of its own, as on a machine of its own.
            *([] if shares_files else [f"--temp-dir={self.last_node_folder}"]),
            f"--num-cpus={cpus}",
            f"--resources={json.dumps(resources or {})}",
            *([f"--node-ip-address={ip}"] if ip else []),
            inside=inside,
        )
        return self._nodes[-1].pid

    @property
    def last_node_folder(self) -> Path:
        """Where the node that was added last has its files, unless it shares the head's."""
        return self.folder / f"node{self._added}"

    def _start_node(self, name: str, *arguments: str, inside: Sequence[str] = ()) -> None:
        log = (self.folder / f"{name}.out").open("wb")
        with log:
            process = subprocess.Popen(
                [
                    *inside,
                    str(BIN / "ray"),
                    "start",
                    "--block",
                    "--dashboard-agent-listen-port=0",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    *arguments,
                ],
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.folder,
            )
        self._nodes.append(process)

    def kill_last_node(self) -> None:
        """Kill the raylet of the node that was added last, and all that it started by itself."""
        node = self._nodes.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def kill(self) -> None:
        """Kill what `ray start` started on every node, but workers: after the end by a fault."""
        while self._nodes:
            self.kill_last_node()

    def answers(self) -> bool:
        for node in self._nodes:
            assert node.poll() is None, self.output()
        noted = self.folder / "ray_current_cluster"
        if not noted.exists() or not noted.read_text():  # it is made before it is written
            return False
        try:
            with urllib.request.urlopen(f"{self.address}/api/version", timeout=5):
                return True
        except OSError as error:
            return getattr(error, "code", None) in (401, 403)

    def tell_if_dashboard_died(self) -> None:
        """Print the end of the dashboard's logs if it doesn't answer any more."""
        if not self._nodes or self.answers():
            return
        for path in sorted(self.logs_dir.glob("dashboard*")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")

    def output(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}"
            for path in sorted(self.folder.glob("*.out"))
        )

    def stop(self) -> None:
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)
        for node in reversed(self._nodes):
            try:
                node.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        self._nodes.clear()


@contextlib.contextmanager
def running_cluster(
    env: dict[str, str] | None = None,
    *,
    cpus: int = 4,
    gpus: int = 0,
    ip: str | None = None,
    prepare: Callable[[Path], object] | None = None,
    without: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Run a head node. `prepare` is called with its folder before.

    Args:
        without: Variables that are otherwise set for every cluster.
    """
    # Short: Ray puts sockets there, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rjt-", dir="/tmp"))
    cluster = Cluster(env or {}, folder)
    for name in without:
        del cluster.env[name]
    try:
        if prepare is not None:
            prepare(folder)
        cluster.start(cpus=cpus, gpus=gpus, ip=ip)
        yield cluster
    finally:
        try:
            cluster.tell_if_dashboard_died()
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def plugin(enabled: bool) -> Iterator[None]:
    """Have the plugin enabled or disabled for the clusters that are started meanwhile."""
    from ray_jobs import plugin as ray_jobs_plugin

    path = ray_jobs_plugin.plugin_path()
    before = path.read_bytes() if path.exists() else None
    try:
        if enabled:
            ray_jobs_plugin.enable()
        else:
            path.unlink(missing_ok=True)
        yield
    finally:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
