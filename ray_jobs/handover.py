"""What the watcher of a gateway hands to the process that serves. Standard library only."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import socket
from typing import Any

PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Handover:
    """The watcher's sockets, and what it was told."""

    watcher: int  #: Its pid.
    listeners: list[int]  #: Descriptors of bound sockets. Who serves makes them listen.
    ready: int  #: A pipe, for one line once connections are accepted.
    options: dict[str, Any]  #: Of `ray-jobs serve`.

    def encoded(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decoded(cls, text: str) -> Handover:
        """Return what `encoded` gave. Raises ValueError, TypeError."""
        return cls(**json.loads(text))

    def sockets(self) -> list[socket.socket]:
        return [socket.socket(fileno=descriptor) for descriptor in self.listeners]

    def die_with_watcher(self) -> None:
        """Have the kernel kill this process when the watcher dies, however it does."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.watcher:  # it died before
            os._exit(1)

    def tell_ready(self, raylet_pid: int | None) -> None:
        """Tell the watcher that connections are accepted, and whose end is the gateway's."""
        os.write(self.ready, f"{raylet_pid or 0}\n".encode())
        os.close(self.ready)


def runs(pid: int) -> bool:
    """Return whether a process runs. One that only waits for its parent to look doesn't."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
