"""What the gateway does about connections that come to nothing.

aiohttp waits without end for the head of a request. (Ray's dashboard, the plugin's host, has a
server of its own.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp.web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from .open_files import ServerFull, need_room

logger = logging.getLogger(__name__)

#: A connection that hasn't sent the whole head of its first request by then is ended, in seconds.
HEAD_TIMEOUT_S = 30.0
#: One that sends no further request is ended by aiohttp.
KEEPALIVE_TIMEOUT_S = 75.0
#: How often is looked for them.
SWEEP_INTERVAL_S = 2.0

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
    """Keeps count of which connections have ever sent a request."""

    def __init__(self, head_timeout_s: float = HEAD_TIMEOUT_S) -> None:
        self._head_timeout_s = head_timeout_s
        self._served: set[object] = set()
        self._seen_at: dict[RequestHandler, float] = {}

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
                answer = aiohttp.web.Response(
                    status=503,
                    text=error.message,
                    headers={"Retry-After": str(error.retry_after_s)},
                )
                answer.force_close()
                return answer
            return await handler(request)

        app.middlewares.insert(0, admit)

    async def sweep(self, runner: aiohttp.web.AppRunner) -> None:
        """End connections that only hold a place. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while runner.server is not None:
            now = loop.time()
            connections = runner.server.connections
            self._served &= set(connections)
            waiting = [each for each in connections if each not in self._served]
            self._seen_at = {each: self._seen_at.get(each, now) for each in waiting}
            for connection, seen_at in self._seen_at.items():
                if now - seen_at >= self._head_timeout_s:
                    connection.force_close()
                    if connection.transport is not None:
                        connection.transport.abort()
            await asyncio.sleep(SWEEP_INTERVAL_S)
