"""A guarded face over a cluster in memory, served by a real server and asked by a real client."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pathlib
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from ray_jobs.dashboard_module.face import Face, FaceConfig
from ray_jobs.dashboard_module.guard import Guard, GuardSettings
from ray_jobs.dashboard_module.redaction import is_browser_request
from ray_jobs.dashboard_module.routes import ROUTES

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
        """Close the guard, and return the lines of its audit."""
        await self.guard.close()
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]


@contextlib.asynccontextmanager
async def serving(
    cluster: Cluster, *, demands_token: bool = False, **settings: Any
) -> AsyncIterator[Guarded]:
    path = cluster.log_dir / "audit.jsonl"
    guard = Guard(
        GuardSettings(**{"audit_path": str(path), **settings}),
        server="gateway",
        listening="0.0.0.0",
        demands_token=lambda: demands_token,
    )
    face = Face(
        config=FaceConfig(
            log_dir=str(cluster.log_dir),
            session_name="session_1",
            ray_version="2.60.0",
            ray_commit="abc",
            server_version="0.1.0",
            redact=is_browser_request,
            max_submission_bytes=guard.settings.max_submission_bytes,
            max_queued_jobs=guard.settings.max_queued_jobs,
        ),
        manager=cluster.manager,
        store=cluster.store,
        drivers=cluster.drivers,
        packages=cluster.packages,
        logs=cluster.logs,
    )
    app = aiohttp.web.Application()
    app.add_routes(
        aiohttp.web.RouteDef(
            route.method, route.path, functools.partial(guard.guarded(route), face), {}
        )
        for route in ROUTES
    )
    await face.start()
    async with TestClient(TestServer(app)) as client:
        yield Guarded(client, guard, face, path)
        await face.close()
    await guard.close()


def any_path(route: Any) -> str:
    """Return a path of a route, for things that aren't there."""
    path: str = route.path.format(job_id="nobody", protocol="gcs", name="no.zip")
    return path


def zip_of(size_bytes: int) -> bytes:
    """Return a package of a size."""

    def packed(content: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("a", content)
        return buffer.getvalue()

    return packed(b"x" * (size_bytes - len(packed(b""))))
