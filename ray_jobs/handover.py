"""What the watcher of a gateway hands to the process that serves. Standard library only.

Either may be of another version than the other: the watcher stays when another is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import socket
from typing import Any, NamedTuple, TextIO

PR_SET_PDEATHSIG = 1
#: The line by which the process that serves tells that it does is shorter.
READY_BYTES = 4096


class Ready(NamedTuple):
    """What the process that serves tells its watcher."""

    raylet: int  #: The pid of the raylet whose end is the gateway's; 0 if it can't be told.
    gcs_address: str  #: Of the cluster that it found; "" from one that tells none.

    def encoded(self) -> bytes:
        # The pid has a line of its own: a watcher may read no more than that.
        return f"{self.raylet}\n{self.gcs_address}\n".encode()

    @classmethod
    def decoded(cls, told: bytes) -> Ready:
        pid, _, rest = told.decode(errors="replace").partition("\n")
        return cls(int(pid) if pid.isdecimal() else 0, rest.partition("\n")[0].strip())


@dataclasses.dataclass(frozen=True)
class Handover:
    """The watcher's sockets, and what it was told."""

    watcher: int  #: Its pid.
    listeners: list[int]  #: Descriptors of bound sockets. Who serves makes them listen.
    ready: int  #: A pipe, for a `Ready` once connections are accepted.
    options: dict[str, Any]  #: Of `ray-jobs serve`.

    def encoded(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decoded(cls, text: str) -> Handover:
        """Return what `encoded` gave, without what this version doesn't know. Raises ValueError."""
        found = json.loads(text)
        try:
            known = {each.name: found[each.name] for each in dataclasses.fields(cls)}
            return cls(**{**known, "options": dict(known["options"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def sockets(self) -> list[socket.socket]:
        return [socket.socket(fileno=descriptor) for descriptor in self.listeners]

    def die_with_watcher(self) -> None:
        """Have the kernel kill this process when the watcher dies, however it does."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.watcher:  # it died before
            os._exit(1)

    def tell_ready(self, raylet_pid: int | None, gcs_address: str) -> None:
        """Tell the watcher that connections are accepted, and by which cluster's end they end."""
        os.write(self.ready, Ready(raylet_pid or 0, gcs_address).encoded())
        os.close(self.ready)


def runs(pid: int) -> bool:
    """Return whether a process runs. One that only waits for its parent to look doesn't."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def tell(stream: TextIO | None, text: str) -> None:
    """Write a line to stdout or stderr, or don't: a watcher mustn't die of a full disk or pipe."""
    # Not by `print`: what can't be written would wait in its buffer, and fail again at the exit.
    with contextlib.suppress(OSError):
        if stream is not None:
            os.write(stream.fileno(), f"{text}\n".encode(errors="replace"))
