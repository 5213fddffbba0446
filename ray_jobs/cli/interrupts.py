"""What Ctrl-C does while a job is followed.

The first one leaves the job alone: it says how to stop it, and detaches unless a second one comes
within moments, which stops the job. Then the job is followed to its end; a third one detaches.

All this happens in signal handlers that return instead of raising, because an exception would end
the stream of the log, and following it anew would print it twice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

#: How long the second Ctrl-C may take.
GRACE_S = 2.0


class Detached(KeyboardInterrupt):
    """The user no longer wants to follow the job."""


class Interrupts:
    """Context manager that gives Ctrl-C its meaning while a job is followed."""

    def __init__(
        self, job_id: str, stop: Callable[[], object] | None, *, stop_at_once: bool = False
    ) -> None:
        """`stop` is called from another thread; None when Ctrl-C is only to detach."""
        self._job_id = job_id
        self._stop = stop
        self._stop_at_once = stop_at_once
        self._armed = False
        self._stopping = False
        self._installed = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        # An ignored Ctrl-C stays ignored (nohup, `command &`), and only the main thread has any.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._installed = True
            self._previous = {
                signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt),
                signal.SIGALRM: signal.signal(signal.SIGALRM, self._on_grace_over),
            }
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop is None or self._stopping:
            raise Detached
        if self._armed or self._stop_at_once:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._stopping = True
            _write(f"Stopping job {self._job_id}.")
            # Not here: the interrupted code may be inside the very client that is to be called.
            threading.Thread(target=self._stop_job, name="stop", daemon=True).start()
            return
        self._armed = True
        _write(f"Press Ctrl-C again within {GRACE_S:.0f} s to stop job {self._job_id}.")
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _on_grace_over(self, _signal: int, _frame: FrameType | None) -> None:
        raise Detached

    def _stop_job(self) -> None:
        assert self._stop is not None
        try:
            self._stop()
        except Exception as error:  # noqa: BLE001 - told to the user, who can try again
            _write(f"Could not stop job {self._job_id}: {error}")
            self._stopping = False


def _write(line: str) -> None:
    """Write a line to stderr from a signal handler, where Python's own buffers may be in use."""
    # On a terminal, Ctrl-C has left its ^C on the line, and perhaps a spinner is drawn there.
    start = "\r\x1b[2K" if sys.stderr.isatty() else ""
    data = f"{start}{line}\n".encode(errors="replace")
    while data:
        data = data[os.write(2, data) :]
