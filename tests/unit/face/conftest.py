"""A face over a cluster in memory, served by a real server and asked by a real client."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from ray_jobs.dashboard_module.face import Face
from ray_jobs.dashboard_module.routes import definitions

from .fakes import Client, Cluster


@pytest.fixture
async def cluster(tmp_path: pathlib.Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
async def face(cluster: Cluster) -> AsyncIterator[Face]:
    face = cluster.face()
    await face.start()
    yield face
    await face.close()


@pytest.fixture
async def client(face: Face) -> AsyncIterator[Client]:
    app = aiohttp.web.Application()
    app.add_routes(definitions(face))
    async with TestClient(TestServer(app)) as client:
        yield client
        await face.close()
