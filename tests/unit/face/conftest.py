"""A face over a cluster in memory, served by a real server and asked by a real client."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import AsyncIterator

import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from ray_jobs.dashboard_module.face import Face, FaceConfig
from ray_jobs.dashboard_module.redaction import is_browser_request
from ray_jobs.dashboard_module.routes import ROUTES

from .fakes import Client, Cluster


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
async def face(cluster: Cluster) -> AsyncIterator[Face]:
    face = Face(
        config=FaceConfig(
            log_dir=str(cluster.log_dir),
            session_name="session_1",
            ray_version="2.60.0",
            ray_commit="abc",
            server_version="0.1.0",
            redact=is_browser_request,
        ),
        manager=cluster.manager,
        store=cluster.store,
        drivers=cluster.drivers,
        packages=cluster.packages,
        logs=cluster.logs,
    )
    await face.start()
    yield face
    await face.close()


@pytest.fixture
async def client(face: Face) -> AsyncIterator[Client]:
    app = aiohttp.web.Application()
    app.add_routes(
        aiohttp.web.RouteDef(route.method, route.path, functools.partial(route.handler, face), {})
        for route in ROUTES
    )
    async with TestClient(TestServer(app)) as client:
        yield client
        await face.close()
