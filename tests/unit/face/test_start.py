"""What a face does before its first request: it sees to the manager of a cluster that has one."""

from __future__ import annotations

import asyncio

import pytest

from ray_jobs.errors import ServerNotReady

from .fakes import Cluster


@pytest.mark.parametrize("failure", [ServerNotReady("The GCS restarts."), ValueError("a bug")])
async def test_the_manager_is_looked_for_until_it_succeeds(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    looks, found = [], asyncio.Event()

    async def attach(create: bool) -> bool:
        looks.append(create)
        if len(looks) < 3:
            raise failure
        found.set()
        return False

    monkeypatch.setattr(cluster.manager, "attach", attach)
    face = cluster.face()
    await face.start()
    await asyncio.wait_for(found.wait(), 10)
    await face.close()
    assert looks == [False] * 3, "and nothing is started"


async def test_a_face_may_close_while_it_looks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = asyncio.Event()

    async def attach(create: bool) -> bool:
        looking.set()
        await asyncio.sleep(1000)
        return create

    monkeypatch.setattr(cluster.manager, "attach", attach)
    face = cluster.face()
    await face.start()
    await asyncio.wait_for(looking.wait(), 10)
    await asyncio.wait_for(face.close(), 10)
