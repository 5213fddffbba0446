"""The gateway: our jobs API as a server of its own, beside a cluster that can't be restarted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp.web
import ray

from ray_jobs import _ray
from ray_jobs.errors import RayJobsError, ServerUnreachable
from ray_jobs.handover import runs
from ray_jobs.timeouts import timeout

from .connections import KEEPALIVE_TIMEOUT_S, Connections, log_malformed_requests_briefly
from .face import Face
from .guard import Guard
from .guard.audit import Moment
from .guard.clients import authorization
from .guard.guard import INVALID_TOKEN
from .hosting import face_config, make_guard, packages
from .listening import is_this_machines_only
from .manager_link import RayManager
from .notes import Notes
from .open_files import raise_limit
from .ray_logs import RayLogs
from .ray_ports import RayDrivers, RayStore
from .routes import definitions

logger = logging.getLogger(__name__)

#: The largest body of a request but a package's, which is streamed. As in Ray's dashboard.
MAX_BODY_BYTES = 100 * 1024 * 1024
#: How often the gateway asks whether its node lives; ray tells its drivers nothing.
NODE_CHECK_S = 1.0
PROBE_TIMEOUT_S = 5.0
PUBLIC_PATHS = frozenset({"/", "/api/healthz"})

Handler = Callable[[aiohttp.web.Request], Awaitable[aiohttp.web.StreamResponse]]


class GatewayError(RayJobsError):
    """The gateway can't start."""

    code = "gateway_error"


def serve(
    listeners: Sequence[socket.socket],
    tell_ready: Callable[[int | None, str], None],
    *,
    address: str,
    host: str,
    insecure: bool = False,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    redact_always: bool = False,
) -> None:
    """Serve the jobs API of the cluster at `address` until SIGTERM or SIGINT. Blocking.

    Args:
        listeners: Bound sockets. They listen once it is known that the gateway may serve there.
        tell_ready: Called with the raylet's pid and the GCS's address once it accepts connections.
        host: Where the sockets are bound.
        allowed_hosts: Names in `Host` that are taken beside this machine's own.
        redact_always: Keep secrets from everyone, not from browsers only.

    Raises `RayJobsError` when there is no cluster, this isn't its head node, the port is taken, or
    the address is open to others while no token is demanded (unless `insecure`).
    """
    _ray.take_token_if_found()
    address = gcs_address(address)
    try:
        probe(address)
        _ray.connect(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise ServerUnreachable(
            f"No Ray cluster at {address}: {first_line(error)}",
            hint="Start one with `ray start --head`, or give its --address (host:port of the GCS).",
        ) from None
    if not _ray.is_head_node():
        raise GatewayError(
            "The gateway must run on the head node: logs are read from its files.",
            hint="Run `ray-jobs serve` there, and reach it from here by its URL.",
        )
    if not insecure and not _ray.is_token_auth_enabled() and not is_this_machines_only(listeners):
        raise GatewayError(
            f"Listening on {host} without a token would let anyone run code here.",
            hint="Start the cluster with RAY_AUTH_MODE=token, listen on 127.0.0.1, or say"
            " --insecure if something else guards the port.",
        )
    raise_limit()
    guard = make_guard(
        "gateway",
        log_dir=_ray.logs_dir(),
        listening=host,
        checks_host=True,
        allowed_hosts=allowed_hosts,
        redact_always=redact_always,
    )
    asyncio.run(_serve(guard, listeners, tell_ready, tls_context(tls_cert, tls_key)))


def gcs_address(address: str) -> str:
    """Return where the GCS is, or "auto" where Ray has to look for it.

    RAY_ADDRESS stands in for "auto", unless it is a URL: that is the job server's, for clients, and
    `ray.init` in this process mustn't see it.
    """
    if "://" in os.environ.get("RAY_ADDRESS", ""):
        del os.environ["RAY_ADDRESS"]
    if address == "auto":
        return os.environ.get("RAY_ADDRESS") or address
    return address


def probe(address: str) -> None:
    """Raise OSError if nobody listens at a `host:port`: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and host:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S):
            pass


async def _serve(
    guard: Guard,
    listeners: Sequence[socket.socket],
    tell_ready: Callable[[int | None, str], None],
    tls: ssl.SSLContext | None,
) -> None:
    face = make_face(guard)
    app = make_app(face, guard)
    log_malformed_requests_briefly()
    connections = Connections()
    connections.guard(app)
    runner = aiohttp.web.AppRunner(
        app, access_log=None, shutdown_timeout=2.0, keepalive_timeout=KEEPALIVE_TIMEOUT_S
    )
    await runner.setup()
    await face.start()
    try:
        servers = [await connections.listen(runner, each, tls=tls) for each in listeners]
    except OSError as error:
        await face.close()
        await runner.cleanup()
        where = "{}:{}".format(*listeners[0].getsockname()[:2])
        raise GatewayError(f"Can't listen on {where}: {error.strerror}.") from None
    sweeping = asyncio.ensure_future(connections.sweep(runner))
    raylet = _ray.raylet_pid()
    tell_ready(raylet, ray.get_runtime_context().gcs_address)
    try:
        await until_told_to_end(raylet)
    finally:
        for server in servers:
            server.close()
        sweeping.cancel()
        await face.close()
        await runner.cleanup()
        await guard.close()


async def until_told_to_end(raylet: int | None) -> None:
    """Return on SIGTERM or SIGINT, or when this node's raylet is gone."""
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    while not end.is_set():
        try:
            async with timeout(NODE_CHECK_S):
                await end.wait()
        except asyncio.TimeoutError:
            if raylet is not None and not runs(raylet):
                logger.warning("The cluster is gone; leaving.")
                return


def make_face(guard: Guard) -> Face:
    """Return the face of the cluster to which this process is connected."""
    gcs_address = ray.get_runtime_context().gcs_address
    kv = _ray.Kv()
    return Face(
        config=face_config(
            guard.settings,
            log_dir=_ray.logs_dir(),
            session_name=_ray.session_name(),
            ray_version=ray.__version__,
            ray_commit=ray.__commit__,
        ),
        manager=RayManager(kv, connect=lambda: None, beside_ray=True),
        store=RayStore(kv),
        drivers=RayDrivers(None, gcs_address),
        packages=packages(guard.settings, kv, gcs_address),
        logs=RayLogs(kv),
    )


def make_app(face: Face, guard: Guard) -> aiohttp.web.Application:
    """Return the gateway's application: the same routes as the plugin's, guarded as Ray's are."""
    app = aiohttp.web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[token_check(guard)])
    app.router.add_get("/api/healthz", healthz)
    app.router.add_get("/", index)
    app.add_routes(definitions(face, guard.guarded))
    return app


async def healthz(_: aiohttp.web.Request) -> aiohttp.web.Response:
    return aiohttp.web.Response(text="success", headers={"Cache-Control": "no-store"})


async def index(_: aiohttp.web.Request) -> aiohttp.web.Response:
    return aiohttp.web.Response(text="ray-jobs gateway: the jobs API is under /api/jobs/\n")


def token_check(guard: Guard) -> Any:
    """Return a middleware that demands Ray's token where the cluster does.

    It is taken from the headers and the cookie from which Ray takes it, and compared by Ray, in
    constant time.
    """

    @aiohttp.web.middleware
    async def check(request: aiohttp.web.Request, handler: Handler) -> aiohttp.web.StreamResponse:
        if request.path in PUBLIC_PATHS or not _ray.is_token_auth_enabled():
            return await handler(request)
        begun = Moment.now()
        found = authorization(request)
        if found and _ray.is_valid_token_header(found):
            return await handler(request)
        status, text = 403, "Forbidden: Invalid authentication token"
        if not found:
            status, text = 401, "Unauthorized: Missing authentication token"
        reason = INVALID_TOKEN if found else "no_token"
        guard.tell(request, "authenticate", begun, status, Notes(reason=reason))
        return aiohttp.web.Response(status=status, text=text)

    return check


def tls_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return the TLS context of a certificate and its key (PEM files), or None without."""
    if cert is None and key is None:
        return None
    if cert is None:
        raise GatewayError("--tls-key needs --tls-cert.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise GatewayError(f"Can't use the TLS certificate {cert}: {error}") from None
    return context


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
