"""The guard: lets a request through to its handler, or refuses it, and tells the audit."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import aiohttp.web

from ray_jobs import errors
from ray_jobs.keepalive import drop_when_stalled
from ray_jobs.models import API_PREFIX

from ..errors import REFUSALS, Handler, json_errors, plain_errors
from ..notes import Notes, noting
from ..redaction import is_browser_request
from . import audit
from .clients import addresses, authorization, counted_as, token_name
from .hosts import HostList
from .limits import Rate, SharedGauge
from .origins import ANSWER_HEADERS, is_of_foreign_page
from .settings import ALLOWED_HOSTS_VARIABLE, GuardSettings

if TYPE_CHECKING:
    from ..face import Face
    from ..routes import Route

logger = logging.getLogger(__name__)

#: Web pages may read; what changes state is not for browsers, as in Ray's dashboard.
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
#: Routes whose requests wait: they cost next to nothing meanwhile, and there may be many.
WAITING_ROUTES = frozenset({"tail_job_logs", "own_tail_job_logs", "own_wait_for_job"})
#: A client that takes no byte of its answer for so long is dropped, in seconds.
WRITE_STALL_S = 300.0
#: Of a body where none is expected.
MAX_UNASKED_BODY_BYTES = 64 * 1024
ANY_SIZE = 2**63
#: The reason of a refusal for the audit, beside the codes of errors.
INVALID_TOKEN = "invalid_token"


class Guard:
    """Stands before every handler of one host.

    Args:
        server: Which host, for the audit: "gateway".
        listening: The address on which it listens, if it is known.
        demands_token: Whether a token is demanded, which the host itself checks.
    """

    def __init__(
        self,
        settings: GuardSettings,
        *,
        server: str,
        listening: str | None,
        demands_token: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self._server = server
        self._demands_token = demands_token
        checks_host = settings.allowed_hosts is not None
        self._checks_host = checks_host
        self._hosts = HostList(
            settings.allowed_hosts or (), listening=listening, full_name=checks_host
        )
        share = settings.max_client_share
        self._requests = SharedGauge(settings.max_requests, share, "requests at once")
        self._streams = SharedGauge(
            settings.max_streams, share, "followed logs and long polls at once"
        )
        self._submissions = Rate(settings.max_submissions_per_s, "submissions")
        #: By the name of a route. Too big a package is refused by its handler, which says what
        #: to do instead.
        self._max_body_bytes = {
            "submit_job": settings.max_submission_bytes,
            "upload_package": ANY_SIZE,
        }
        path = settings.audit_path
        self._audit = self._audit_at(path)
        #: Apart, since anybody can be refused, as often as it takes to have older lines dropped.
        self._refusals = self._audit_at(path and audit.refusals_path(path))

    def _audit_at(self, path: str | None) -> audit.Audit:
        known = self.settings
        return audit.Audit(
            audit.AuditFile(path, known.audit_max_bytes, known.audit_files) if path else None
        )

    async def close(self) -> None:
        """Write what is left of the audit. No-op the second time."""
        await self._audit.close()
        await self._refusals.close()

    def guarded(self, route: Route) -> Handler:
        """Return the handler of a route, behind this guard. No exception leaves it either."""
        answers_errors = json_errors if route.path.startswith(API_PREFIX) else plain_errors

        @answers_errors
        async def admitted(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            with self._admission(route, request):
                return await route.handler(face, request)

        async def handle(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            begun = audit.Moment.now()
            status: int | None = None
            with noting() as notes:
                try:
                    response = await admitted(face, request)
                    status = response.status
                finally:  # without a status if the client has gone
                    # Of reads, nearly all requests, only refusals are of interest.
                    if status in REFUSALS or request.method not in READING_METHODS:
                        self.tell(request, route.name, begun, status, notes)
            if not response.prepared:
                response.headers.update(ANSWER_HEADERS)
            return response

        return handle

    def tell(
        self,
        request: aiohttp.web.Request,
        action: str,
        begun: audit.Moment,
        status: int | None,
        notes: Notes,
    ) -> None:
        """Tell the audit of an answer. `begun`: when the request came."""
        try:
            entry = self._entry(request, action, begun, status, notes)
            (self._refusals if entry.outcome == "refused" else self._audit).add(entry)
        except Exception:
            logger.exception("A line of the audit is lost.")

    @contextlib.contextmanager
    def _admission(self, route: Route, request: aiohttp.web.Request) -> Iterator[None]:
        """Hold a place while a request is answered. Raises what it is refused with."""
        waits = route.name in WAITING_ROUTES
        gauge = self._streams if waits else self._requests
        client = counted_as(addresses(request, self.settings.trusted_proxies)[0])
        self._check_source(request)
        limit = self._max_body_bytes.get(route.name, MAX_UNASKED_BODY_BYTES)
        if (request.content_length or 0) > limit:
            raise errors.TooLarge(f"The body is over the limit of {limit:,} bytes.")
        if route.name == "submit_job":
            self._submissions.take(client)
        gauge.take_for(client)
        # Who follows a log may pause it for hours. Else an answer holds its place until it is sent.
        drop_when_stalled(request.get_extra_info("socket"), 0 if waits else WRITE_STALL_S)
        try:
            yield
        finally:
            gauge.give_back_for(client)

    def _check_source(self, request: aiohttp.web.Request) -> None:
        if self._checks_host and not self._hosts.allows(request.headers.get("Host")):
            raise ForeignHost(
                f"{request.headers['Host'][:80]!r} is none of this server's names. If it is one,"
                f" add it to {ALLOWED_HOSTS_VARIABLE} where the server runs."
            )
        if request.method not in READING_METHODS and is_browser_request(request):
            raise BrowserWrite(f"'{request.method}' method not allowed for browser traffic.")
        if is_of_foreign_page(request, self._hosts):
            raise ForeignOrigin

    def _entry(
        self,
        request: aiohttp.web.Request,
        action: str,
        begun: audit.Moment,
        status: int | None,
        notes: Notes,
    ) -> audit.Entry:
        time_iso, time_ms = audit.times(begun.wall_s)
        address, proxy = addresses(request, self.settings.trusted_proxies)
        found = request.match_info
        # What a token that was refused says of itself isn't known to be true.
        is_known = self._demands_token() and status != 401 and notes.reason != INVALID_TOKEN
        return audit.Entry(
            time=time_iso,
            time_ms=time_ms,
            server=self._server,
            action=action,
            method=request.method,
            job_id=notes.job_id or found.get("job_id"),
            package=found.get("name"),
            address=address,
            proxy=proxy,
            user_agent=request.headers.get("User-Agent"),
            token=token_name(authorization(request)) if is_known else None,
            outcome=_outcome(status),
            status=status,
            reason=notes.reason,
            duration_ms=begun.elapsed_ms(),
        )


class ForeignHost(errors.Forbidden):
    """The name in the request is none of this server's."""

    reason = "foreign_host"


class ForeignOrigin(errors.Forbidden):
    """Pages of other origins may not read this."""

    reason = "foreign_origin"


class BrowserWrite(errors.Forbidden):
    """Browsers may not change anything here."""

    reason = "browser_write"
    http_status = 405


def _outcome(status: int | None) -> str:
    if status in REFUSALS:
        return "refused"
    return "done" if status is not None and status < 400 else "failed"
