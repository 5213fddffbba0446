"""What the gateway does about connections that come to nothing.

aiohttp waits without end for the head of a request. (Ray's dashboard, the plugin's host, has a
server of its own.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary, WeakSet

import aiohttp.web

from .open_files import ServerFull, need_room

#: A connection that hasn't sent the whole head of its first request by then is ended, in seconds.
HEAD_TIMEOUT_S = 30.0
#: One that sends no further request is ended by aiohttp.
KEEPALIVE_TIMEOUT_S = 75.0
#: How often is looked for them.
SWEEP_INTERVAL_S = 2.0

_Handler = Callable[[aiohttp.web.Request], Awaitable[aiohttp.web.StreamResponse]]


class Connections:
    """Keeps count of which connections have ever sent a request."""

    def __init__(self, head_timeout_s: float = HEAD_TIMEOUT_S) -> None:
        self._head_timeout_s = head_timeout_s
        self._served: WeakSet[object] = WeakSet()
        self._seen_at: WeakKeyDictionary[object, float] = WeakKeyDictionary()

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
            for connection in runner.server.connections:
                if connection in self._served:
                    continue
                seen_at = self._seen_at.setdefault(connection, now)
                if now - seen_at >= self._head_timeout_s:
                    connection.force_close()
                    if connection.transport is not None:
                        connection.transport.abort()
            await asyncio.sleep(SWEEP_INTERVAL_S)
