"""A proxy before a server, whose answers it can hold back: they come late, in their order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading

from tests.cluster import free_port

READ_BYTES = 64 * 1024
START_TIMEOUT_S = 10.0


class LateAnswers:
    """Listens on a port of its own, on a thread of its own. A context manager.

    Args:
        behind: The port of the server, on this machine.
    """

    def __init__(self, behind: int) -> None:
        self.port = free_port()
        #: Each answer comes so late at most, by chance.
        self.most_s = 0.0
        #: How many have come late, so far.
        self.late = 0
        self._behind = behind
        self._rng = random.Random(behind)
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LateAnswers:
        self._thread.start()
        assert self._listens.wait(START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._begin, "127.0.0.1", self.port)
        self._listens.set()
        async with server:
            await self._over.wait()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client until it or the server ends the connection."""
        with contextlib.closing(writer), contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._behind)
            with contextlib.closing(back):
                answers: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                ways = [
                    asyncio.ensure_future(way)
                    for way in (
                        pass_on(reader, back),
                        self._receive(there, answers),
                        self._deliver(answers, writer),
                    )
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _receive(
        self, reader: asyncio.StreamReader, answers: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        while data := await reader.read(READ_BYTES):
            delay_s = self._rng.uniform(0, self.most_s)
            self.late += delay_s > 0
            answers.put_nowait((self._loop.time() + delay_s, data))

    async def _deliver(
        self, answers: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, data = await answers.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            writer.write(data)
            await writer.drain()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
