"""Many tails at once, each of which costs the client little more than a socket."""

from __future__ import annotations

import asyncio

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}\r\n"
)
TIMEOUT_S = 60.0
#: Connections that are begun at once.
BATCH = 100


class Tail(asyncio.Protocol):
    """A WebSocket's client, as far as the handshake; what comes after is kept as it is."""

    def __init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()
        self.received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.answer.done() and b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            self.answer.set_result(head.decode("latin-1"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("closed without a word"))

    async def status(self) -> int:
        """Return the status of the server's answer."""
        head = await asyncio.wait_for(asyncio.shield(self.answer), TIMEOUT_S)
        return int(head.split(" ", 2)[1])

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


async def begin(port: int, path: str, headers: str = "") -> Tail:
    """Ask for a tail. `headers`: more lines, each with its end."""
    _, tail = await asyncio.get_running_loop().create_connection(Tail, "127.0.0.1", port)
    assert tail.transport is not None
    tail.transport.write(HANDSHAKE.format(path=path, headers=headers).encode())
    return tail


async def begin_many(port: int, paths: list[str]) -> list[Tail]:
    """Begin a tail for each path, and wait for the answers."""
    tails: list[Tail] = []
    for start in range(0, len(paths), BATCH):
        batch = await asyncio.gather(*(begin(port, path) for path in paths[start : start + BATCH]))
        await asyncio.gather(*(tail.status() for tail in batch))
        tails += batch
    return tails
