"""Requests to a job server: their headers, TLS, proxies, redirects and errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
from multidict import CIMultiDict

from ray_jobs.client import plain, responses
from ray_jobs.client.address import Address
from ray_jobs.client.auth import authorization, find_token
from ray_jobs.client.proxies import find_proxy
from ray_jobs.client.tls import ssl_argument
from ray_jobs.errors import AuthenticationFailed, InvalidRequest
from ray_jobs.timeouts import timeout

if TYPE_CHECKING:
    import ssl

    import aiohttp

    from ray_jobs.client.session import Session

T = TypeVar("T")

#: Generic since aiohttp 3.14.
WebSocket: TypeAlias = "aiohttp.ClientWebSocketResponse[Any]"

CONNECT_TIMEOUT_S = 10.0
#: Silence that is taken for a server which won't answer any more. Ray's own server may take 30 s
#: to find its agent before it answers a submission.
READ_TIMEOUT_S = 120.0
#: Until a WebSocket is open: the server looks for the job, and no further.
WEBSOCKET_TIMEOUT_S = 30.0
#: After the last byte of a package: the server puts it into the GCS before it answers.
UPLOAD_READ_TIMEOUT_S = 600.0
MAX_REDIRECTS = 5
#: So many requests of a client may go without aiohttp. A command at a shell makes one or two; who
#: makes more wants connections that are used again.
PLAIN_REQUESTS = 3

_REDIRECTS = {301, 302, 303, 307, 308}


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
    """Sends requests to one job server: the first ones the short way, where that will do."""

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
        #: The URL and the Set-Cookie of what was answered before there was a session.
        self._received_cookies: list[tuple[str, str]] = []
        self._verify = verify
        self._session: Session | None = None
        self._plain_left = PLAIN_REQUESTS
        #: The latest that was found.
        self._token: str | None = None
        #: Whether there has been any answer: the address is right.
        self.has_answered = False

    def _opened(self) -> aiohttp.ClientSession:
        """Return the aiohttp session of the running loop."""
        if self._session is None:
            from ray_jobs.client.session import Session

            self._session = Session()
        return self._session.get(self._cookies, self._received_cookies, self._tls)

    def _place(self, is_held: bool) -> contextlib.AbstractAsyncContextManager[None]:
        """Return what holds a place among the requests at once, if a request takes one."""
        if is_held or self._session is None:
            return contextlib.nullcontext()
        return self._session.places

    def _all_headers(self) -> dict[str, str]:
        """Return the headers that go with every request, with the token as it is by now."""
        try:
            self._token = find_token()
        except AuthenticationFailed:
            if self._token is None:  # else its file is being replaced
                raise
        headers = authorization(self._headers, self.address.basic_auth, self._token)
        if not any(name.lower() == "user-agent" for name in headers):
            headers["User-Agent"] = "ray-jobs"
        return headers

    def _tls(self) -> ssl.SSLContext | bool:
        """Return how certificates are verified; those of CAs take a while to load."""
        proxy = find_proxy(self.address)
        wanted = self._base.startswith("https:") or (proxy is not None and proxy.scheme == "https")
        return ssl_argument(self._verify) if wanted else True

    async def close(self) -> None:
        """Close the session. No-op when there is none."""
        if self._session is not None:
            await self._session.close()

    def url(self, path: str, query: str = "") -> str:
        """Return the URL of an encoded path of the API."""
        return f"{self._base}{path}" + (f"?{query}" if query else "")

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
        is_held: bool = False,
    ) -> Answer:
        """Send a request, and return the answer with whatever status.

        Args:
            path: Below the address, percent-encoded.
            json: A body to be encoded, instead of `data`.
            read_timeout: Seconds of silence after which the server is given up.
            is_held: The server answers when there is something to tell, not at once.

        Raises:
            RayJobsError: no answer came: see `connection_errors`.
        """
        url = self.url(path, query)
        extra = dict(headers or {})
        body: Any = data
        if json is not None:
            body = msgspec.json.encode(json)
            extra["Content-Type"] = "application/json"
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._plainly(
                method, url, extra, body, read_timeout
            ) or await self._by_session(method, url, extra, body, read_timeout, is_held)
            self.has_answered = True
            target = _redirect(method, url, answer)
            if target is None:
                return answer
            url = target
        return answer

    async def _plainly(
        self,
        method: str,
        url: str,
        extra: Mapping[str, str],
        body: object,
        read_timeout: float,
    ) -> Answer | None:
        """Send a request without aiohttp; None when it takes aiohttp to do it, or to fail."""
        if not self._plain_left or self._session is not None:
            return None
        if self._cookies or self._received_cookies:
            return None
        if not isinstance(body, bytes | None) or find_proxy(self.address) is not None:
            return None
        headers = CIMultiDict(self._all_headers())
        headers.update(extra)
        if not plain.is_enough(url, self.address.host, headers):
            return None
        self._plain_left -= 1
        where = f"{method} {_without_query(url)}"
        try:
            status, received, content = await plain.exchange(
                method,
                url,
                headers,
                body,
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=read_timeout,
            )
        except plain.NotConnectedError:
            return None
        except (OSError, asyncio.TimeoutError, plain.NotHttpError):
            from ray_jobs.client.connection_errors import mapped

            with mapped(where, self.address):
                raise
        self._received_cookies += [(url, line) for line in received.getall("Set-Cookie", [])]
        return Answer(status, received, content, where)

    async def _by_session(
        self,
        method: str,
        url: str,
        extra: Mapping[str, str],
        body: Any,
        read_timeout: float,
        is_held: bool,
    ) -> Answer:
        import aiohttp
        from yarl import URL

        from ray_jobs.client.connection_errors import mapped

        where = f"{method} {_without_query(url)}"
        proxy = find_proxy(self.address)
        session = self._opened()
        headers = CIMultiDict(self._all_headers())
        headers.update(extra)
        with mapped(where, self.address, proxy):
            async with (
                self._place(is_held),
                session.request(
                    method,
                    URL(url, encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    proxy=proxy,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_timeout
                    ),
                ) as response,
            ):
                return Answer(response.status, response.headers, await response.read(), where)

    async def websocket(self, path: str, query: str = "") -> WebSocket:
        """Open a WebSocket.

        Raises:
            RayJobsError: the server refused it, or doesn't answer.
        """
        import aiohttp
        from yarl import URL

        from ray_jobs.client.connection_errors import mapped

        url = URL(self.url(path, query), encoded=True)
        where = f"GET {self.url(path)}"
        proxy = find_proxy(self.address)
        with mapped(where, self.address, proxy):
            try:
                # By older versions of aiohttp it is bounded by nothing else.
                async with timeout(WEBSOCKET_TIMEOUT_S):
                    connection: WebSocket = await self._opened().ws_connect(
                        url, headers=self._all_headers(), proxy=proxy, max_msg_size=0
                    )
                self.has_answered = True
                return connection
            except aiohttp.WSServerHandshakeError as error:
                if not error.status:
                    raise
                status = error.status
        # The answer to a refused upgrade comes without its body: ask again for the words.
        answer = await self.request("GET", path, query=query)
        if answer.status < 300:
            answer = Answer(status, {}, b"the WebSocket was refused", where)
        raise responses.error_of(answer.status, answer.headers, answer.body, answer.where)


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _redirect(method: str, url: str, answer: Answer) -> str | None:
    """Return where to go on with a request, if anywhere."""
    if method != "GET" or answer.status not in _REDIRECTS:
        return None
    return redirect_target(url, answer.headers.get("Location"))


def redirect_target(url: str, location: str | None) -> str | None:
    """Return where to go on; credentials stay on the server for which they are meant."""
    if not location:
        return None
    from yarl import URL

    try:
        target = URL(url, encoded=True).join(URL(location, encoded=True))
    except ValueError:
        return None
    same = target.absolute and target.origin() == URL(url, encoded=True).origin()
    return str(target) if same else None
