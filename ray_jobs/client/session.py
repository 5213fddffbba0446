"""The aiohttp session of a client: opened in the loop that needs it, closed with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from ray_jobs.client.transport import CONNECT_TIMEOUT_S, redirect_target

if TYPE_CHECKING:
    import ssl

#: Requests at once. What the server holds isn't counted: else a hundred followed logs would leave
#: no connection for anything else.
MAX_REQUESTS = 100

#: Sessions that a fork left in the child, where they must not even be closed: their sockets and
#: selector are the parent's.
_inherited: list[object] = []


class Session:
    """Holds the session of the running loop, and opens one when there is none."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        #: For each request that the server answers at once.
        self.places = asyncio.Semaphore(MAX_REQUESTS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def get(
        self,
        cookies: Mapping[str, str],
        received: Sequence[tuple[str, str]],
        tls: Callable[[], ssl.SSLContext | bool],
    ) -> aiohttp.ClientSession:
        """Return the session of the running loop.

        Args:
            cookies: To send with every request.
            received: The URL and the Set-Cookie of answers that came before it was opened.
            tls: Returns how certificates are verified. Only called to open one.
        """
        loop = asyncio.get_running_loop()
        if self._session is not None and (self._pid != os.getpid() or self._loop is not loop):
            # After a fork, or in a second asyncio.run().
            self._abandon()
        if self._session is None:
            # Sent to a server at a bare IP too. No netrc: a login found there would take the
            # place of Ray's token.
            jar = aiohttp.CookieJar(unsafe=True, quote_cookie=False)
            session = aiohttp.ClientSession(
                # Of WebSockets: requests bring their own.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                cookies=cookies,
                cookie_jar=jar,
                connector=aiohttp.TCPConnector(ssl=tls(), limit=0),
                trace_configs=[_staying_on_its_server()],
            )
            self.places = asyncio.Semaphore(MAX_REQUESTS)  # it belongs to the loop too
            for url, line in received:
                with contextlib.suppress(CookieError):  # as aiohttp passes over such
                    jar.update_cookies(SimpleCookie(line), URL(url, encoded=True))
            guard = _guard(session)
            _step(guard.__anext__)
            self._session, self._loop, self._pid = session, loop, os.getpid()
            self._finalizer = weakref.finalize(self, _abandon, session, guard, loop, self._pid)
        return self._session

    def _abandon(self) -> None:
        """Leave the session without waiting for it."""
        if self._finalizer is not None:
            self._finalizer()
        self._session = self._loop = self._finalizer = None

    async def close(self) -> None:
        """Close the session. No-op when there is none."""
        session = self._session
        if session is None:
            return
        if self._pid == os.getpid() and self._loop is asyncio.get_running_loop():
            await session.close()
        self._abandon()


def _staying_on_its_server() -> aiohttp.TraceConfig:
    """Return what has a WebSocket follow redirects on its own server alone.

    Requests follow theirs by themselves. aiohttp has no such setting for WebSockets, and takes
    headers of ours to any other server, but for those that it knows to be credentials.
    """

    async def look(
        _session: aiohttp.ClientSession, _context: object, hop: aiohttp.TraceRequestRedirectParams
    ) -> None:
        answer = hop.response
        if redirect_target(str(answer.url), answer.headers.get("Location")) is None:
            answer.close()
            raise aiohttp.WSServerHandshakeError(
                answer.request_info, (), status=answer.status, message="redirected elsewhere"
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return trace


async def _guard(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Close a session at the end of its loop: asyncio.run() closes what generators it finds."""
    try:
        yield
    finally:
        await session.close()


def _abandon(
    session: aiohttp.ClientSession,
    guard: AsyncGenerator[None, None],
    loop: asyncio.AbstractEventLoop,
    pid: int,
) -> None:
    """Close a session that nobody waits for, from any thread, whether its loop runs or not."""

    def close() -> None:
        _step(session.close)
        _step(guard.aclose)

    if pid != os.getpid():
        _inherited.append((session, guard))
    elif loop.is_running() and loop is not _running_loop():
        loop.call_soon_threadsafe(close)
    else:
        close()


def _step(begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine up to where it would wait: by then aiohttp has closed its sockets."""
    coroutine = begin()
    try:
        coroutine.send(None)
    except (StopIteration, StopAsyncIteration, RuntimeError):
        return  # done; or its loop is closed, and no socket can be closed in order any more
    coroutine.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
