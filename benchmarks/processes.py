"""Memory and CPU of a cluster's processes, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Entrypoints that only sit there; each has a number of its own behind the point, so that the
#: process of a certain job can be found.
SLEEP_WORDS = "sleep 86400."


class ClusterProcesses:
    """The processes of one cluster: all below `ray start`, and all that our keepers are made of.

    The latter aren't below it (they outlive parts of Ray), but name the cluster's folder.
    """

    def __init__(self, root_pid: int, folder: Path) -> None:
        self._root_pid = root_pid
        self._folder = str(folder)

    def all(self) -> dict[int, str]:
        """Return every process with its command line."""
        parents = {pid: parent for pid, (parent, _) in all_stats().items()}
        commands = {pid: command_line(pid) for pid in parents}
        members = {self._root_pid} | {
            pid for pid, command in commands.items() if self._folder in command
        }
        children: dict[int, list[int]] = {}
        for pid, parent in parents.items():
            children.setdefault(parent, []).append(pid)
        pending = list(members)
        while pending:
            below = [pid for pid in children.get(pending.pop(), ()) if pid not in members]
            members.update(below)
            pending.extend(below)
        return {pid: commands[pid] for pid in members if pid in commands}

    def control_plane(self) -> list[int]:
        """Return every process but the sleeping entrypoints."""
        return [pid for pid, command in self.all().items() if not command.startswith(SLEEP_WORDS)]

    def of_role(self, role: str) -> list[int]:
        return [pid for pid, command in self.all().items() if role_of(command) == role]

    def entrypoint(self, number: int) -> int:
        """Return the pid of the entrypoint `sleep_command(number)`."""
        wanted = sleep_command(number).removeprefix("exec ")
        [pid] = [pid for pid, command in self.all().items() if command == wanted]
        return pid

    def cpu_s(self) -> float:
        """Return the CPU seconds of the control plane so far, ended children included.

        What ended and was waited for is in its parent's account, so nothing gets lost.
        """
        stats = all_stats()
        return sum(stats[pid][1] for pid in self.control_plane() if pid in stats)

    def pss_mb(self) -> float:
        """Return the proportional memory of the control plane."""
        return sum(map(pss_mb, self.control_plane()))

    def pss_mb_by_role(self) -> dict[str, float]:
        """Return the proportional memory of each kind of process."""
        found: dict[str, float] = {}
        for pid, command in self.all().items():
            role = role_of(command)
            found[role] = found.get(role, 0.0) + pss_mb(pid)
        return found


def sleep_command(number: int) -> str:
    """Return an entrypoint that sleeps, and that `ClusterProcesses` knows by its number."""
    return f"exec {SLEEP_WORDS}{number:06d}"


def role_of(command: str) -> str:
    """Return what kind of process of a cluster a command line shows."""
    if command.startswith(SLEEP_WORDS):
        return "entrypoints"
    for part, role in (
        (" -I -S -c ", "keepers"),  # first: the rest of its command line is source text
        ("/gcs_server ", "gcs"),
        ("/raylet ", "raylet"),
        ("ray::JobManager", "manager"),
        ("ray::JobSupervisor", "supervisors"),
        ("ray::DashboardAgent", "agent"),
        ("ray::RuntimeEnvAgent", "agent"),
        ("ray::", "workers"),
        ("/dashboard/dashboard.py", "dashboard"),
        ("ray-dashboard-", "dashboard"),
    ):
        if part in command:
            return role
    return "other"


def all_stats() -> dict[int, tuple[int, float]]:
    """Return the parent and the CPU seconds (waited-for children included) of every process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
                ticks = sum(int(field) for field in fields[11:15])
                found[int(entry)] = (int(fields[1]), ticks / TICKS_PER_S)
    return found


def command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""  # it has ended
    return words.replace(b"\0", b" ").decode(errors="replace").strip()


def pss_mb(pid: int) -> float:
    """Return a process's memory, shared pages divided among those that share them; 0 once ended."""
    return _kib(pid, "smaps_rollup", "Pss:") * 1024 / 1e6


def reset_peak_memory(pids: Iterable[int]) -> None:
    """Begin to look for the peak anew."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_mb(pid: int) -> float:
    """Return a process's resident memory; 0 once ended."""
    return _kib(pid, "status", "VmRSS:") * 1024 / 1e6


def peak_memory_mb(pid: int) -> float:
    """Return the most resident memory since `reset_peak_memory`; 0 once ended."""
    return _kib(pid, "status", "VmHWM:") * 1024 / 1e6


def _kib(pid: int, file: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
