"""Requests to a job server: one aiohttp session, its headers, TLS, proxies and errors."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from ray_jobs.client import responses
from ray_jobs.client.address import Address
from ray_jobs.client.auth import authorization, find_token
from ray_jobs.client.connection_errors import mapped
from ray_jobs.client.proxies import find_proxy
from ray_jobs.client.tls import ssl_argument
from ray_jobs.errors import InvalidRequest

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

#: Generic since aiohttp 3.14.
WebSocket: TypeAlias = "aiohttp.ClientWebSocketResponse[Any]"

CONNECT_TIMEOUT_S = 10.0
#: Silence that is taken for a server which won't answer any more. Ray's own server may take 30 s
#: to find its agent before it answers a submission.
READ_TIMEOUT_S = 120.0
#: After the last byte of a package: the server puts it into the GCS before it answers.
UPLOAD_READ_TIMEOUT_S = 600.0
MAX_REDIRECTS = 5

_REDIRECTS = {301, 302, 303, 307, 308}

#: Sessions that a fork left in the child, where they must not even be closed: their sockets and
#: selector are the parent's.
_inherited: list[object] = []


def quoted(segment: str) -> str:
    """Return an id as one segment of a URL's path.

    Raises:
        InvalidRequest: it isn't UTF-8.
    """
    # A path of "." or ".." would be resolved away before it is sent.
    if not segment.strip("."):
        return segment.replace(".", "%2E")
    try:
        return quote(segment, safe="")
    except UnicodeEncodeError:
        raise InvalidRequest(f"The id {segment!a} isn't UTF-8, so no job has it.") from None


class Answer:
    """What a server answered: status, headers, and the whole body."""

    __slots__ = ("body", "headers", "status", "where")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, where: str) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.where = where

    def json(self, wanted: type[T]) -> T:
        """Decode a body of JSON, which must be of this type."""
        return responses.decode(self.body, wanted, self.where)

    def check(self) -> Answer:
        """Raise what a status other than 200 stands for."""
        if self.status != 200:
            raise responses.error_of(self.status, self.headers, self.body, self.where)
        return self


class Transport:
    """Sends requests to one job server. Opens its session with the first of them."""

    def __init__(
        self,
        address: Address,
        *,
        headers: Mapping[str, str],
        cookies: Mapping[str, str],
        verify: bool | Path,
    ) -> None:
        self.address = address
        self._base = address.url
        self._headers = dict(headers)
        self._cookies = dict(cookies)
        self._verify = verify
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def _opened(self) -> aiohttp.ClientSession:
        """Return the session of the running loop, opening one when there is none."""
        loop = asyncio.get_running_loop()
        if self._session is not None and (self._pid != os.getpid() or self._loop is not loop):
            # After a fork, or in a second asyncio.run().
            self._abandon()
        if self._session is None:
            headers = authorization(self._headers, self.address.basic_auth, find_token())
            headers.setdefault("User-Agent", "ray-jobs")
            session = aiohttp.ClientSession(
                headers=headers,
                # Sent to a server at a bare IP too. No netrc: a login found there would take the
                # place of Ray's token.
                cookies=self._cookies,
                cookie_jar=aiohttp.CookieJar(unsafe=True, quote_cookie=False),
                connector=aiohttp.TCPConnector(ssl=self._tls(), limit=100),
            )
            guard = _guard(session)
            _step(guard.__anext__)
            self._session, self._loop, self._pid = session, loop, os.getpid()
            self._finalizer = weakref.finalize(self, _abandon, session, guard, loop, self._pid)
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        """Return how certificates are verified; those of CAs take a while to load."""
        proxy = find_proxy(self.address)
        wanted = self._base.startswith("https:") or (proxy is not None and proxy.scheme == "https")
        return ssl_argument(self._verify) if wanted else True

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

    def url(self, path: str, query: str = "") -> URL:
        """Return the URL of an encoded path of the API."""
        return URL(f"{self._base}{path}" + (f"?{query}" if query else ""), encoded=True)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        json: object = None,
        data: aiohttp.payload.Payload | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float = READ_TIMEOUT_S,
    ) -> Answer:
        """Send a request, and return the answer with whatever status.

        Args:
            path: Below the address, percent-encoded.
            json: A body to be encoded, instead of `data`.
            read_timeout: Seconds of silence after which the server is given up.

        Raises:
            RayJobsError: no answer came: see `connection_errors`.
        """
        url = self.url(path, query)
        proxy = find_proxy(self.address)
        extra = dict(headers or {})
        body: Any = data
        if json is not None:
            body = msgspec.json.encode(json)
            extra["Content-Type"] = "application/json"
        for _ in range(MAX_REDIRECTS + 1):
            where = f"{method} {url.with_query(None)}"
            with mapped(where, self.address, proxy):
                async with self._opened().request(
                    method,
                    url,
                    data=body,
                    headers=extra,
                    allow_redirects=False,
                    proxy=proxy,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_timeout
                    ),
                ) as response:
                    answer = Answer(response.status, response.headers, await response.read(), where)
            target = self._redirect(method, url, answer)
            if target is None:
                return answer
            url = target
        return answer

    def _redirect(self, method: str, url: URL, answer: Answer) -> URL | None:
        """Return where to go on; credentials stay on the server for which they are meant."""
        location = answer.headers.get("Location")
        if method != "GET" or answer.status not in _REDIRECTS or not location:
            return None
        try:
            target = url.join(URL(location, encoded=True))
        except ValueError:
            return None
        return target if target.absolute and target.origin() == url.origin() else None

    async def websocket(self, path: str, query: str = "") -> WebSocket:
        """Open a WebSocket.

        Raises:
            RayJobsError: the server refused it, or doesn't answer.
        """
        url = self.url(path, query)
        where = f"GET {url.with_query(None)}"
        proxy = find_proxy(self.address)
        with mapped(where, self.address, proxy):
            try:
                connection: WebSocket = await self._opened().ws_connect(
                    url, proxy=proxy, max_msg_size=0
                )
                return connection
            except aiohttp.WSServerHandshakeError as error:
                if not error.status:
                    raise
                status = error.status
        # The answer to a refused upgrade comes without its body: ask again for the words.
        answer = await self.request("GET", path, query=query)
        if answer.status < 400:
            answer = Answer(status, {}, b"the WebSocket was refused", where)
        raise responses.error_of(answer.status, answer.headers, answer.body, answer.where)


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
