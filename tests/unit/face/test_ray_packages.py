"""Packages in the GCS, whose calls last while it is away."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

from ray_jobs.dashboard_module.ray_ports import GCS_THREADS, RayPackages

from tests.archives import zip_of

URI = "gcs://a.zip"


class AwayKv:
    """`_ray.Kv` whose blocking calls wait until the GCS is back."""

    def __init__(self) -> None:
        self.is_back = threading.Event()
        self.pinned: list[str] = []
        self.stored: dict[str, bytes] = {}

    def pin_package(self, uri: str) -> None:
        self.is_back.wait()
        self.pinned.append(uri)

    def put_package(self, uri: str, data: bytes) -> None:
        self.is_back.wait()
        self.stored[uri] = data


async def test_nothing_else_waits_for_the_gcs() -> None:
    """Neither logs nor anything of Ray's, in whose dashboard this is: they have other threads."""
    kv: Any = AwayKv()
    packages = RayPackages(kv, "127.0.0.1:1")
    count = 10 * GCS_THREADS
    calls = [asyncio.ensure_future(packages.pin(URI)) for _ in range(count)]
    calls.append(asyncio.ensure_future(packages.put(URI, io.BytesIO(zip_of()), by_process=False)))
    assert await asyncio.to_thread(lambda: "a log") == "a log"
    assert not any(each.done() for each in calls)
    kv.is_back.set()
    await asyncio.gather(*calls)
    assert kv.pinned == [URI] * count
    assert kv.stored == {URI: zip_of()}
