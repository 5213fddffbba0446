"""Ray's own processes on this machine, as the kernel tells of them. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

_DASHBOARD = "ray/dashboard/dashboard.py"
GCS_OPTION = "--gcs-address"
SESSION_OPTION = "--session-dir"


class Process(NamedTuple):
    """A process as it was started."""

    pid: int
    argv: list[str]
    env: dict[str, str]  #: Empty where another user's isn't asked for.
    folder: str

    def option(self, name: str) -> str:
        """Return the value of an option (`--name=value`, `--a-name` as `--a_name` too), or ""."""
        for word in self.argv:
            key, equals, value = word.partition("=")
            if equals and key.replace("_", "-").lstrip("-") == name.lstrip("-"):
                return value
        return ""

    @property
    def gcs_address(self) -> str:
        return self.option(GCS_OPTION)


def dashboards(gcs_address: str | None = None) -> list[Process]:
    """Return this user's dashboards, of the cluster at `gcs_address` if one is given."""
    found = []
    for pid, argv in command_lines():
        if any(word.endswith(_DASHBOARD) for word in argv):
            with contextlib.suppress(OSError):  # another user's, or gone
                pairs = (word.partition("=") for word in _words(f"/proc/{pid}/environ"))
                env = {key: value for key, equals, value in pairs if equals}
                found.append(Process(pid, argv, env, os.readlink(f"/proc/{pid}/cwd")))
    return [each for each in found if gcs_address in (None, each.gcs_address)]


def raylets(gcs_address: str | None = None) -> list[Process]:
    """Return the raylets, whoever's they are, by their command lines alone."""
    found = [
        Process(pid, argv, {}, "")
        for pid, argv in command_lines()
        if os.path.basename(argv[0]) == "raylet"
    ]
    return [each for each in found if gcs_address in (None, each.gcs_address)]


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Yield pid and words of each process. One that has ended has none."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                argv = _words(f"/proc/{name}/cmdline")
                if argv:
                    yield int(name), argv


def is_seen(pid: int) -> bool:
    """Return whether a process has its command line already."""
    with contextlib.suppress(OSError):
        return bool(_words(f"/proc/{pid}/cmdline"))
    return False


def _words(path: str) -> list[str]:
    with open(path, "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
