"""The plugin class that Ray's dashboard loads, and nothing else (rules 9 and 10).

Ray's private dashboard API is used here alone: there is no public way to add a route. Whatever goes
wrong with ray-jobs, at construction or in `run`, Ray's own job server answers instead.
"""

from __future__ import annotations

import logging
from typing import Any

import aiohttp.web
import ray
from ray.dashboard.optional_utils import DashboardHeadRouteTable
from ray.dashboard.subprocesses.routes import SubprocessRouteTable
from ray.dashboard.utils import DashboardHeadModule

from ray_jobs import _ray

from .face import Face
from .hosting import face_config, make_guard, packages
from .manager_link import RayManager
from .ray_logs import RayLogs
from .ray_ports import RayDrivers, RayStore
from .routes import ROUTES, Route

logger = logging.getLogger(__name__)


class RayJobsHead(DashboardHeadModule):  # type: ignore[misc]
    """Serves our jobs API from Ray's dashboard, before Ray's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._face: Face | None = None
        try:
            # Its port is that of Ray's own pages as well: the names in `Host` aren't looked at
            # unless they are listed.
            self._guard = make_guard("dashboard", log_dir=self.log_dir)
            self._face = self._make_face()
            self._register()
        except Exception:
            logger.exception("ray-jobs can't be set up: Ray's own job API serves.")
            self._face = None

    @staticmethod
    def is_minimal_module() -> bool:
        return False

    async def run(self) -> None:
        """Begin to serve. Called once the HTTP server listens."""
        try:
            if self._face is not None:
                await self._face.start()
        except Exception:
            logger.exception("ray-jobs can't be started: Ray's own job API serves.")
            self._face = None

    def _make_face(self) -> Face:
        gcs_client = self.gcs_client
        kv = _ray.Kv(gcs_client)
        return Face(
            config=face_config(
                self._guard.settings,
                log_dir=self.log_dir,
                session_name=self.session_name,
                ray_version=ray.__version__,
                ray_commit=ray.__commit__,
            ),
            manager=RayManager(
                kv, connect=lambda: _ray.connect_in_thread(self.gcs_address), beside_ray=False
            ),
            store=RayStore(kv),
            drivers=RayDrivers(gcs_client, self.gcs_address),
            packages=packages(self._guard.settings, kv, self.gcs_address),
            logs=RayLogs(kv),
        )

    def _register(self) -> None:
        """Add our routes to Ray's table, all of them or none."""
        registered: list[Any] = []
        try:
            for route in ROUTES:
                register = DashboardHeadRouteTable._register_route(route.method, route.path)
                register(self._handler(route))
                info = DashboardHeadRouteTable._bind_map[route.method][route.path]
                info.instance = self
                registered.append(info)
        except Exception:
            for info in registered:
                info.instance = None  # Ray serves only the routes that have one
            raise

    def _handler(self, route: Route) -> Any:
        guarded = self._guard.guarded(route)

        async def handle(_: Any, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
            face = self._face
            if face is None:
                return await ray_answers(request)
            return await guarded(face, request)

        handle.__name__ = route.name
        return handle


async def ray_answers(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    """Answer by Ray's own job server, which serves the same paths behind ours."""
    dispatcher = aiohttp.web.UrlDispatcher()
    dispatcher.add_routes(SubprocessRouteTable.bound_routes())
    match = await dispatcher.resolve(request)
    if match.http_exception is not None:
        return aiohttp.web.Response(status=match.http_exception.status, text="ray-jobs is not up.")
    return await match.handler(request)
