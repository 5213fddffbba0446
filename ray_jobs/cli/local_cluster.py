"""A Ray cluster on this machine that lives as long as one job: `ray-jobs run` without a cluster.

Two children, each in a session of its own: `ray start --head --block`, and the gateway beside it
(`ray-jobs serve`), so nothing is written into site-packages. Ports are free ones, and Ray's
temporary folder is one of our own: clusters that the user has already are neither found nor
touched. (That is also why there is no `ray stop`, which ends every cluster on the machine.)
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from ray_jobs.cli import outcome
from ray_jobs.cli.terminal import Spinner, say
from ray_jobs.errors import INSTALL_HINT, RayJobsError
from ray_jobs.own_python import COMMAND_LINE, python_command

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
#: What `ray-jobs serve` prints when it is ready, before its URL.
READY_WORDS = "ray-jobs gateway listening on "
PROBE_TIMEOUT_S = 2.0
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
#: A process in uninterruptible sleep doesn't die; it isn't waited for any longer.
KILL_TIMEOUT_S = 10.0
#: Below the ephemeral ports of Linux (from 32768) and macOS (from 49152), and above most services'.
PORTS = range(20_000, 32_000)
_PR_SET_PDEATHSIG = 1


class LocalClusterError(RayJobsError):
    """The local Ray cluster did not start."""

    code = "local_cluster_failed"


def answers(url: str, timeout: float = PROBE_TIMEOUT_S) -> bool:
    """Return whether a Ray job server answers at a URL; one that wants a token counts."""
    import http.client
    import json
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    with closing(connection):
        try:
            connection.request("GET", "/api/version")
            response = connection.getresponse()
            if response.status in (401, 403):
                return True
            return response.status == 200 and "ray_version" in json.loads(response.read(65536))
        except (OSError, http.client.HTTPException, ValueError, TypeError):
            # Nobody there, or somebody who is no Ray.
            return False


def ray_executable() -> str:
    """Return the path of the command `ray`; the one of our own environment if it has one."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("ray")
    if found is None:
        raise LocalClusterError(
            "No cluster was found, and none can be started: Ray is not installed here.",
            hint=f"{INSTALL_HINT} (or give the --address of a cluster).",
        )
    return found


def gateway_command(gcs_address: str) -> list[str]:
    """Return the command that serves the jobs API for a cluster, on a free port."""
    words = ["serve", "--address", gcs_address, "--host", "127.0.0.1", "--port", "0"]
    return python_command(COMMAND_LINE, *words)


def free_ports(count: int) -> list[int]:
    """Return different TCP ports on loopback that are free, and stay so for a while.

    Not from the kernel's own choice: Ray's processes take ephemeral ports by the dozen while they
    start, and would take one that was free a moment ago.
    """
    found: list[int] = []
    candidates = random.sample(PORTS, len(PORTS))
    while len(found) < count:
        with closing(socket.socket()) as probe, suppress(OSError):
            port = candidates.pop()
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Child:
    """A process in a session of its own, whose output goes to a file and may be watched."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._ready = threading.Event()
        self._answer: str | None = None
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        self._find: Callable[[str], str | None] = lambda _line: None
        self._reader: threading.Thread | None = None

    def wait_until_ready(self, find: Callable[[str], str | None], timeout: float) -> str:
        """Return the first answer that `find` gives for a line of output.

        Raises LocalClusterError when the process ends, or the time is over, before that.
        """
        self._find = find
        self._reader = threading.Thread(target=self._read, name=self.name, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + timeout
        ended = False
        # The end of the process is asked for, since what it started may keep the pipe open.
        while not self._ready.wait(0.1) and not ended and time.monotonic() < deadline:
            ended = self._process.poll() is not None
        if self._answer is not None:
            return self._answer
        ended = ended or self._ready.is_set()
        problem = "ended before it was ready" if ended else f"was not ready in {timeout:.0f} s"
        raise LocalClusterError(
            f"`{self.name}` {problem}. The last lines of {self.log}:\n{self.last_lines()}"
        )

    def last_lines(self, count: int = 20) -> str:
        """Return the end of what the process printed."""
        with suppress(FileNotFoundError):
            lines = self.log.read_text(errors="replace").splitlines()
            return "\n".join(f"  {line}" for line in lines[-count:])
        return ""

    def stop(self) -> None:
        """End the process: SIGTERM first, SIGKILL to its whole session when it takes too long."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                kill_session(self._process.pid)
                self._process.wait()
        # What it left behind when it was killed, or crashed.
        kill_session(self._process.pid)
        if self._reader is not None:
            self._reader.join(1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        output: IO[bytes] = self._process.stdout
        with output, self.log.open("wb", buffering=0) as log:
            for line in output:
                log.write(line)
                if self._answer is None:
                    self._answer = self._find(line.decode(errors="replace"))
                    if self._answer is not None:
                        self._ready.set()
        self._ready.set()


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a child calls to get SIGTERM when we die without stopping it (kill -9)."""
    if not sys.platform.startswith("linux"):
        return None
    # Loaded here and not in the child, where little is safe between fork and exec.
    prctl = ctypes.CDLL(None).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return in_child


def kill_session(session: int) -> None:
    """Kill every process of a session that is not ours, and wait until they have ended.

    Elsewhere than on Linux, only its leader's group is killed, and not waited for.
    """
    if not Path("/proc/self/stat").exists():
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
        return
    deadline = time.monotonic() + KILL_TIMEOUT_S
    # Until a look finds none: what was found may have forked before it was killed.
    while (living := _living_members(session)) and time.monotonic() < deadline:
        for pid in living:
            _kill_and_wait(pid, deadline)


def _living_members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name, in parentheses, may hold anything; state and session come after it.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(entry.name))
    return found


def _kill_and_wait(pid: int, deadline: float) -> None:
    with suppress(ProcessLookupError):
        # Before the kill: afterwards the pid may be another process's.
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            # Readable once it has ended.
            select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        finally:
            os.close(fd)


class LocalCluster:
    """Context manager around a cluster that is started for one job; `url` is its job server."""

    def __init__(self) -> None:
        self.url = ""
        self._children: list[Child] = []
        self._folder = Path()
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> LocalCluster:
        ray = ray_executable()
        # Short, because Ray puts sockets there, whose paths may have 107 characters.
        self._folder = Path(
            tempfile.mkdtemp(prefix="rj-", dir=os.environ.get("RAY_TMPDIR") or "/tmp")
        )
        self._exit_on_termination()
        try:
            with Spinner("Starting a local Ray cluster") as spinner:
                if not spinner.visible:
                    say("Starting a local Ray cluster.")
                gcs_address = self._start_ray(ray)
                self.url = self._start_gateway(gcs_address)
        except BaseException as error:
            # The logs of Ray say more than its output does: they stay for the user to read.
            self._stop(keep_folder=isinstance(error, RayJobsError))
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with Spinner("Stopping the local Ray cluster"):
            self._stop(keep_folder=False)

    def _start_ray(self, ray: str) -> str:
        dashboard_port, client_port = free_ports(2)
        command = [
            ray,
            "start",
            "--head",
            "--block",
            "--log-color=false",
            "--port=0",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            f"--ray-client-server-port={client_port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}",
            f"--temp-dir={self._folder}",
        ]
        address_file = self._folder / "ray_current_cluster"

        def find_address(_line: str) -> str | None:
            # Written before the last lines are printed; no promise is made about their words.
            with suppress(FileNotFoundError):
                return address_file.read_text().strip() or None
            return None

        return self._start("ray start", command, find_address)

    def _start_gateway(self, gcs_address: str) -> str:
        def find_url(line: str) -> str | None:
            _, found, url = line.partition(READY_WORDS)
            return url.strip() if found else None

        return self._start("ray-jobs serve", gateway_command(gcs_address), find_url)

    def _start(self, name: str, command: list[str], find: Callable[[str], str | None]) -> str:
        log = self._folder / (name.replace(" ", "-") + ".log")
        child = Child(name, command, _environment(), log)
        self._children.append(child)
        return child.wait_until_ready(find, START_TIMEOUT_S)

    def _exit_on_termination(self) -> None:
        """Make SIGTERM and SIGHUP end us by an exception, so that the cluster is stopped."""

        def leave(_number: int, _frame: FrameType | None) -> None:
            raise SystemExit(outcome.TERMINATED)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._previous_handlers[number] = signal.signal(number, leave)

    def _stop(self, *, keep_folder: bool) -> None:
        """Stop everything, undisturbed: what is left running would be nobody's."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            for number in (signal.SIGINT, *self._previous_handlers):
                previous = signal.signal(number, signal.SIG_IGN)
                self._previous_handlers.setdefault(number, previous)
        for child in reversed(self._children):
            child.stop()
        self._children.clear()
        if not keep_folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if in_main_thread:
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._previous_handlers.clear()


def _environment() -> dict[str, str]:
    """Return our environment, changed so that `python` is the interpreter that has ray."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"
    # Idle actors would hold the cluster back for half a minute, and there is nowhere to drain to.
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    # Ray asks for consent by a notice on the terminal, which nobody sees here.
    env.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return env
