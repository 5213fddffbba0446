"""A guarded face over a cluster in memory, served by a real server and asked by a real client."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from ray_jobs.dashboard_module.face import Face
from ray_jobs.dashboard_module.guard import Guard, GuardSettings
from ray_jobs.dashboard_module.guard.audit import refusals_path
from ray_jobs.dashboard_module.routes import definitions

from tests.unit.face.fakes import Client, Cluster


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> Cluster:
    return Cluster(tmp_path)


class Guarded:
    """A guarded server, with its client and what it wrote into the audit."""

    def __init__(self, client: Client, guard: Guard, face: Face, path: pathlib.Path) -> None:
        self.client = client
        self.guard = guard
        self.face = face
        self._path = path

    async def audit(self) -> list[dict[str, Any]]:
        """Close the guard, and return the lines of its audit, those of refusals last."""
        await self.guard.close()
        paths = (self._path, pathlib.Path(refusals_path(str(self._path))))
        return [
            json.loads(line)
            for path in paths
            if path.exists()
            for line in path.read_text().splitlines()
        ]


def only_routes(face: Face, guard: Guard) -> aiohttp.web.Application:
    """Return an application of the guarded routes, and nothing else."""
    app = aiohttp.web.Application()
    app.add_routes(definitions(face, guard.guarded))
    return app


@contextlib.asynccontextmanager
async def serving(
    cluster: Cluster,
    *,
    demands_token: bool = False,
    make_app: Callable[[Face, Guard], aiohttp.web.Application] = only_routes,
    **settings: Any,
) -> AsyncIterator[Guarded]:
    path = cluster.log_dir / "audit.jsonl"
    guard = Guard(
        GuardSettings(**{"audit_path": str(path), **settings}),
        server="gateway",
        listening="0.0.0.0",
        demands_token=lambda: demands_token,
    )
    face = cluster.face(
        max_submission_bytes=guard.settings.max_submission_bytes,
        max_queued_jobs=guard.settings.max_queued_jobs,
    )
    await face.start()
    async with TestClient(TestServer(make_app(face, guard))) as client:
        yield Guarded(client, guard, face, path)
        await face.close()
    await guard.close()


def any_path(route: Any) -> str:
    """Return a path of a route, for things that aren't there."""
    path: str = route.path.format(job_id="nobody", protocol="gcs", name="no.zip")
    return path
