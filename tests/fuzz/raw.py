"""Requests as no client makes them, byte by byte."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import socket

TIMEOUT_S = 20.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back; status 0 for a connection that was closed without a word."""

    status: int
    head: str
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def request(
    port: int, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> Answer:
    """Send one request, its path as it stands, and read the answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    given = headers or {}
    if body and not {"content-length", "transfer-encoding"} & {name.lower() for name in given}:
        given = {**given, "Content-Length": str(len(body))}
    lines += [f"{name}: {value}" for name, value in given.items()]
    return send(port, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def send(port: int, data: bytes) -> Answer:
    """Send bytes, and read the answer to the request that they begin with."""
    method = data.split(b" ", 1)[0].decode("latin-1")
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        # The server may answer and close before it had everything.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        response = http.client.HTTPResponse(connection, method=method)
        try:
            response.begin()
            return Answer(response.status, str(response.headers), response.read())
        except (http.client.HTTPException, ConnectionError):
            return Answer(0, "", b"")
