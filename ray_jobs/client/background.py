"""An event loop on a thread of its own, for callers that have none, or that sit in one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: How long the end of the program, or `close`, waits for connections to close.
CLOSE_TIMEOUT_S = 2.0

#: Loops whose thread a fork left behind. They are kept, since closing one in the child would take
#: its sockets out of the selector that it shares with the parent.
_inherited: list[object] = []


class _Call(Generic[T]):
    """A coroutine on its way through a loop of another thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, T],
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """`on_end` is called in the loop."""
        self._loop = loop
        self._on_end = on_end
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None
        self._is_cancelled = False
        self._ended = threading.Event()

    def begin(self) -> None:
        """Have it started."""
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._is_cancelled:
            return
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(lambda _: self._end())

    def _end(self) -> None:
        self._ended.set()
        if self._on_end is not None:
            self._on_end()

    def result(self, timeout: float | None = None) -> T:
        """Begin, wait for the end, and return the result.

        Raises:
            TimeoutError: it didn't end in time; it was told to.
        """
        try:
            # An interrupt may come in here too, with or without the call having been made.
            self.begin()
            ended = self._ended.wait(timeout)
        except BaseException:  # KeyboardInterrupt, or what else a signal handler raises
            self.cancel()
            # Not before it is over: the caller may want to use what it still holds.
            self._ended.wait(CLOSE_TIMEOUT_S)
            raise
        if not ended:
            self.cancel()
            raise TimeoutError
        return self.outcome()

    def outcome(self) -> T:
        """Return the result of what has ended."""
        try:
            if self._task is None:
                raise asyncio.CancelledError
            return self._task.result()
        except asyncio.CancelledError:
            raise RuntimeError("The client was closed.") from None

    def cancel(self) -> None:
        """Have it end, soon."""

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()
            else:
                self._is_cancelled = True
                self._coroutine.close()
                self._end()

        self._loop.call_soon_threadsafe(cancel)


class BackgroundLoop:
    """Runs coroutines on an event loop in a daemon thread, started with the first of them.

    After a fork the child starts a thread of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._stopped = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, and return its result. An interrupt cancels it.

        Raises:
            RuntimeError: it was stopped; or called from the loop's own thread, where it would
                wait for itself.
        """
        try:
            if self._stopped:
                raise RuntimeError("The client is closed.")
            if self._thread is threading.current_thread():
                raise RuntimeError(
                    "The synchronous client can't be used from its own callbacks; use "
                    "AsyncJobSubmissionClient there."
                )
            call = _Call(self._started(), coroutine)
        except BaseException:
            coroutine.close()
            raise
        return call.result()

    async def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, and return its result, to a coroutine of another loop.

        Cancelling the latter cancels the former.

        Raises:
            RuntimeError: it was stopped.
        """
        if self._stopped:
            coroutine.close()
            raise RuntimeError("The client is closed.")
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def on_end() -> None:
            with contextlib.suppress(RuntimeError):  # the other loop is closed meanwhile
                loop.call_soon_threadsafe(ended.set)

        call = _Call(self._started(), coroutine, on_end)
        try:
            call.begin()
            await ended.wait()
        except asyncio.CancelledError:
            call.cancel()
            # Not before it is over, as in `run`.
            await ended.wait()
            raise
        return call.outcome()

    @property
    def stopped(self) -> bool:
        """Whether nothing runs on it any more."""
        return self._stopped

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            # The lock may have been held by another thread at the moment of the fork.
            _inherited.append((self._loop, self._thread, self._lock))
            self._loop, self._thread, self._lock = None, None, threading.Lock()
            self._pid = os.getpid()
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="ray-jobs-client", daemon=True
                )
                self._thread.start()
            return self._loop

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine, and end the thread. Nothing runs afterwards."""
        self._stopped = True
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or self._pid != os.getpid() or not thread.is_alive():
            last.close()
            return
        self._loop = self._thread = None
        if thread is threading.current_thread():
            # Garbage is collected anywhere, on the loop's own thread too.
            loop.create_task(last).add_done_callback(lambda _: loop.stop())
            return
        try:
            _Call(loop, last).result(CLOSE_TIMEOUT_S)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(CLOSE_TIMEOUT_S)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if pending:
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
