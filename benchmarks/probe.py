"""The dashboard's health check, asked all the while: a job server must be a good guest there.

Run as a file it is the process that asks. It is one of its own, so that the load of the client's
event loop isn't taken for the dashboard's. Standard library only.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from urllib.parse import urlsplit

#: What a Kubernetes probe of the head asks.
PATH = "/api/gcs_healthz"
INTERVAL_S = 0.1
TIMEOUT_S = 30.0


class Probe:
    """Asks while it is started; `samples_ms` holds what it has found, in milliseconds."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._process: subprocess.Popen[str] | None = None
        self.samples_ms: list[float] = []

    def start(self) -> None:
        parts = urlsplit(self._address)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(parts.hostname), str(parts.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        """Ask no more. No-op if it isn't started."""
        if self._process is not None:
            output, _ = self._process.communicate(timeout=2 * TIMEOUT_S)
            self.samples_ms += map(float, output.split())
            self._process = None


def ask(host: str, port: int) -> float:
    """Ask every `INTERVAL_S`, until stdin is closed. Prints the milliseconds of each."""
    import select

    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    due = time.perf_counter()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
        # One that was held up by the answer before it has waited since it was due.
        late = time.perf_counter() - due
        began = due if late > INTERVAL_S / 2 else time.perf_counter()
        try:
            connection.request("GET", PATH)
            with connection.getresponse() as answer:
                answer.read()
            is_good = answer.status == 200
        except (OSError, http.client.HTTPException):
            connection.close()
            is_good = False
        # No answer, or another one, isn't a fast answer.
        print((time.perf_counter() - began if is_good else TIMEOUT_S) * 1000)
        due += INTERVAL_S
    return due


if __name__ == "__main__":
    ask(sys.argv[1], int(sys.argv[2]))
