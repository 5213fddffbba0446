"""The processes of a cluster, and jobs that wait for a word."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_jobs import JobSubmissionClient
from tests.waiting import wait_until

ATTEMPT_VARIABLE = b"RAY_JOBS_ATTEMPT="
ZYGOTE = "ray-jobs-zygote"
#: Seconds. Nothing else on the machine sleeps for so long.
UNMARKED_SLEEP = 31415926


def processes() -> Iterator[Path]:
    """Yield the folder in /proc of each process. Any of them may be gone."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield entry


def titled(title: str) -> list[int]:
    """Return the pids of Ray workers by their titles."""
    found = []
    for entry in processes():
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().decode(errors="replace").startswith(title):
                found.append(int(entry.name))
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def start_waiting_job(
    client: JobSubmissionClient, folder: Path, code: int = 5, **fields: Any
) -> tuple[str, int]:
    """Submit a job that ends with `code` once `folder/go` exists. Returns it and its shell's pid.

    Args:
        fields: Of the submission, as of `submit_job`.
    """
    command = f"echo pid $$; while [ ! -e {folder}/go ]; do sleep 0.05; done; exit {code}"
    job_id = client.submit_job(entrypoint=command, **fields)

    def pids() -> list[int]:
        lines = client.get_job_logs(job_id).splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("pid ")]

    wait_until(lambda: len(pids()) == 1, "it runs", 30)
    return job_id, pids()[0]


def kill_titled(title: str, signum: signal.Signals = signal.SIGKILL) -> set[int]:
    """Send a signal to every Ray worker with a title. Returns their pids."""
    pids = set(titled(title))
    for pid in pids:
        send(pid, signum)
    return pids


def send(pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def runs(pid: int) -> bool:
    """Return whether a process is there, and not only its exit status for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def named(name: str, argument: str = "") -> list[int]:
    """Return the pids of processes by what `ps` calls them: our zygote and keepers.

    Args:
        argument: What is in their command lines too.
    """
    found = []
    for entry in processes():
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() != name:
                continue
            if argument.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def zygotes(argument: str = "") -> list[int]:
    """Return the pids of our zygotes. `argument`: as of `named`."""
    found = []
    for pid in named(ZYGOTE, argument):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == pid:
                found.append(pid)
    # A keeper that has just been forked has the zygote's name, but not in a session of its own.
    return sorted(set(found) & set(named(ZYGOTE, argument)))


def in_session(session: int) -> list[int]:
    """Return the pids of the processes of a session: those of a node that Ray started."""
    found = []
    for entry in processes():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found


def unmarked(number: int = 0) -> str:
    """Return a command of a workload's job that runs until it is killed.

    It has lost its parent, its session, and what each job's processes have in their environment.

    Args:
        number: By which it is told from others.
    """
    return f"(env -i setsid sleep {UNMARKED_SLEEP}.{number:05d} &)"


def of_jobs(attempt: bytes = b"", number: int | None = None) -> list[str]:
    """Return the processes of jobs, by what they have in their environment or sleep for.

    Args:
        attempt: The only one that is looked for.
        number: The only one of the `unmarked` that is looked for. Without one, all are, unless an
            attempt is named.
    """
    sleep = f"sleep\0{UNMARKED_SLEEP}.".encode()
    if number is not None:
        sleep += b"%05d\0" % number
    found = []
    for entry in processes():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            sleeps = command.startswith(sleep) and (number is not None or not attempt)
            if sleeps or ATTEMPT_VARIABLE + attempt in (entry / "environ").read_bytes():
                found.append(f"{entry.name}: {command!r}")
    return found
