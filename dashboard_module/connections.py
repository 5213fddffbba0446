"""What the gateway does about connections that come to nothing.

aiohttp waits without end for the head of a request. (Ray's dashboard, the plugin's host, has a
server of its own.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable

import aiohttp.web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from .open_files import RETRY_AFTER_S, ServerFull, file_limit, need_room

logger = logging.getLogger(__name__)

#: A connection that hasn't sent the whole head of its first request by then is ended, in seconds.
HEAD_TIMEOUT_S = 30.0
#: One that sends no further request is ended by aiohttp.
KEEPALIVE_TIMEOUT_S = 75.0
#: And by then while others are refused.
CROWDED_HEAD_TIMEOUT_S = 3.0
#: And one whose client doesn't get on with TLS. Until then it isn't seen here.
TLS_HANDSHAKE_TIMEOUT_S = 5.0
#: Connections that the kernel keeps until they are accepted.
BACKLOG = 1024
#: Connections that asyncio accepts in one step (it takes its own backlog for that). It may have
#: taken four such steps before the first of them can be refused.
ACCEPTED_AT_ONCE = 64
#: How often is looked for them.
SWEEP_INTERVAL_S = 2.0

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Retry-After: %d\r\nConnection: close\r\nContent-Length: 55\r\n\r\n"
    b"The server has as many connections as it may have now.\n" % RETRY_AFTER_S
)

_Handler = Callable[[aiohttp.web.Request], Awaitable[aiohttp.web.StreamResponse]]


def log_malformed_requests_briefly() -> None:
    """Have aiohttp log what is no HTTP without a traceback, and without what it was.

    Anybody can send it, in any number, and a token may be in it.
    """
    logging.getLogger("aiohttp.server").addFilter(_is_no_malformed_request)


def _is_no_malformed_request(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | aiohttp.web.RequestPayloadError):
        logger.info("A malformed request: %s", type(error).__name__)
        return False
    return True


class Connections:
    """The gateway's connections: who is let in, and who must go."""

    def __init__(
        self,
        head_timeout_s: float = HEAD_TIMEOUT_S,
        handshake_timeout_s: float = TLS_HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self._head_timeout_s = head_timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        #: Those that have sent a request, and since when the others are there.
        self._served: set[object] = set()
        self._seen_at: dict[RequestHandler, float] = {}
        self._turned_away = False

    def guard(self, app: aiohttp.web.Application) -> None:
        """Have every request of an application pass here first."""

        @aiohttp.web.middleware
        async def admit(
            request: aiohttp.web.Request, handler: _Handler
        ) -> aiohttp.web.StreamResponse:
            self._served.add(request.protocol)
            try:
                need_room(request, stays=False)
            except ServerFull as error:
                self._turned_away = True
                headers = {"Retry-After": str(error.retry_after_s)}
                answer = aiohttp.web.Response(status=503, text=error.message, headers=headers)
                answer.force_close()
                return answer
            return await handler(request)

        app.middlewares.insert(0, admit)

    async def listen(
        self,
        runner: aiohttp.web.AppRunner,
        listener: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> asyncio.Server:
        """Begin to accept connections to a bound socket. Raises OSError. The caller closes."""
        assert runner.server is not None
        make_handler = runner.server
        server = await asyncio.get_running_loop().create_server(
            lambda: _Door(make_handler, self._turn_away),
            sock=listener,
            ssl=tls,
            ssl_handshake_timeout=self._handshake_timeout_s if tls else None,
            backlog=ACCEPTED_AT_ONCE,
        )
        with socket.socket(fileno=os.dup(listener.fileno())) as same:
            same.listen(BACKLOG)
        return server

    async def sweep(self, runner: aiohttp.web.AppRunner) -> None:
        """End connections that only hold a place. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while runner.server is not None:
            now = loop.time()
            connections = runner.server.connections
            self._served &= set(connections)
            waiting = [each for each in connections if each not in self._served]
            self._seen_at = {each: self._seen_at.get(each, now) for each in waiting}
            patience_s = self._head_timeout_s
            if self._turned_away:
                patience_s = min(patience_s, CROWDED_HEAD_TIMEOUT_S)
                self._turned_away = False
            for connection, seen_at in self._seen_at.items():
                if now - seen_at >= patience_s:
                    connection.force_close()
                    if connection.transport is not None:
                        connection.transport.abort()
            await asyncio.sleep(SWEEP_INTERVAL_S)

    def _turn_away(self) -> None:
        self._turned_away = True


class _Door(asyncio.Protocol):
    """Hands a connection on to aiohttp, or refuses it before it has asked for anything."""

    def __init__(
        self, make_handler: Callable[[], asyncio.Protocol], turned_away: Callable[[], None]
    ) -> None:
        self._make_handler = make_handler
        self._turned_away = turned_away

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        connection = transport.get_extra_info("socket")
        if connection.fileno() >= file_limit() - 4 * ACCEPTED_AT_ONCE:
            self._turned_away()
            transport.write(_FULL)
            transport.close()
            return
        handler = self._make_handler()
        transport.set_protocol(handler)
        handler.connection_made(transport)
