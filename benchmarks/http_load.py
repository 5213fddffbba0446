"""A lean HTTP client for many requests: a common one would take as much CPU as the server."""

from __future__ import annotations

import selectors
import socket
import time
from urllib.parse import urlsplit

WINDOW_S = 1.0


class _Client:
    """A connection that is kept, with one request on its way."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._answer = b""

    def ask(self) -> None:
        self.socket.sendall(self._request)

    def received(self) -> bool:
        """Take what has come. Returns whether the answer is complete."""
        data = self.socket.recv(1 << 16)
        assert data, "the server has closed the connection"
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or not is_complete(head, body):
            return False
        assert head.startswith(b"HTTP/1.1 200"), self._answer[:500]
        self._answer = b""
        return True


def is_complete(head: bytes, body: bytes) -> bool:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(body) >= int(value)
    return body.endswith(b"0\r\n\r\n")


def requests_per_s(address: str, path: str, clients: int, windows: int) -> list[float]:
    """Return how many GETs a second that many clients get answered, in each window. Blocking.

    A first window isn't counted.
    """
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 80
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    counts = [0] * (windows + 1)
    with selectors.DefaultSelector() as selector:
        asking = [_Client(host, port, request) for _ in range(clients)]
        for client in asking:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
        began = time.perf_counter()
        while (index := int((time.perf_counter() - began) / WINDOW_S)) < len(counts):
            for key, _ in selector.select(WINDOW_S):
                if key.data.received():
                    counts[index] += 1
                    key.data.ask()
        for client in asking:
            client.socket.close()
    return [count / WINDOW_S for count in counts[1:]]
