"""An event loop in virtual time, which runs as many steps as it is told, one after the other.

Nothing waits: when no callback is ready, the clock moves on to the next timer. Each callback is of
the process in whose context it was made; those of a process that was killed never run, as after a
`kill -9`, though others still hold its futures.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

#: 2026-01-01, in seconds: what `time.time` says at the start.
EPOCH_S = 1_767_225_600.0
#: How long something takes that runs in a thread.
THREAD_S = 0.02


class Process:
    """A process of the cluster. Killed, it does nothing more."""

    def __init__(self, name: str, node: Any = None) -> None:
        self.name = name
        self.node = node
        self.is_alive = True
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        #: Called when it dies.
        self.on_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        if self.is_alive:
            self.is_alive = False
            for call in self.on_death:
                call()

    def __repr__(self) -> str:
        return self.name


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
#: Of what is nobody's: the network, the KV's server, the kernel.
NOBODYS = contextvars.Context()


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. `random` says how long threads take."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closing = False
        #: Callbacks of killed processes.
        self._dead: list[asyncio.Handle] = []

    # --- what a test does -----------------------------------------------------------------------

    def run_steps(self, steps: int, until: float) -> None:
        """Run so many callbacks, those that are due before a moment (seconds) at most."""
        asyncio._set_running_loop(self)
        try:
            for _ in range(steps):
                if not self._step(until):
                    return
        finally:
            asyncio._set_running_loop(None)

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        until = self._now + seconds
        self.run_steps(1_000_000, until)
        assert not self._ready, "it never comes to rest"
        self._now = until

    def close(self) -> None:
        """End all tasks, those of killed processes too, which are not heard any more."""
        self._is_closing = True
        self._ready.extend(self._dead)
        self._dead.clear()
        for _ in range(100):
            alive = [task for task in self._tasks if not task.done()]
            if not alive:
                break
            for task in alive:
                task.cancel()
            self.run_steps(10_000, self._now + 1)
        assert all(task.done() for task in self._tasks), "tasks that can't be cancelled"
        for task in self._tasks:
            if not task.cancelled():
                task.exception()
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()

    def _step(self, until: float) -> bool:
        while self._timers and (self._timers[0][0] <= self._now or self._timers[0][2].cancelled()):
            self._ready.append(heapq.heappop(self._timers)[2])
        if not self._ready:
            if not self._timers or self._timers[0][0] > until:
                return False
            self._now = self._timers[0][0]
            return self._step(until)
        handle = self._ready.popleft()
        if not self._may_run(handle):
            self._dead.append(handle)
        elif not handle.cancelled():
            handle._run()
        return True

    def _may_run(self, handle: asyncio.Handle) -> bool:
        if self._is_closing:
            return True
        process: Process | None = handle._context.get(PROCESS)  # type: ignore[attr-defined]
        return process is None or process.is_alive

    # --- what asyncio calls ---------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled ones are left out when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None
    ) -> asyncio.Task[Any]:
        if context is not None:
            made: asyncio.Task[Any] = context.run(self.create_task, coro)
            return made
        task = asyncio.Task(coro, loop=self)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        process = PROCESS.get(None)

        def run() -> None:
            # A process that was killed has no threads.
            if process is not None and not process.is_alive:
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - for who waits
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._random.uniform(0, THREAD_S), run, context=NOBODYS.copy())
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Of what nobody awaits, the exceptions are heard by nobody, as those of Ray's calls."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)
