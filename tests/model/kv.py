"""The cluster's KV as a server in memory that takes requests one after the other.

A request has its effect at once or later, in the order in which requests arrive; it may be lost,
or have its effect and lose the answer. What a killed process has sent still arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from tests.model.loop import NOBODYS, PROCESS, Process
from tests.model.weather import Weather


class KvWatcher(Protocol):
    """Who judges what is written."""

    def reads_records(self, process: Process) -> None:
        """A process has got the keys of all records."""

    def puts(self, process: Process, namespace: bytes, key: str, value: bytes) -> None:
        """A process is about to write a value."""

    def deletes(self, process: Process, namespace: bytes, key: str) -> None:
        """A process is about to remove a key that is there."""


class ModelKv:
    """`KeyValueStore`, for all processes of the cluster."""

    def __init__(self, weather: Weather, watcher: KvWatcher) -> None:
        self.data: dict[tuple[bytes | None, str], bytes] = {}
        self.weather = weather
        self._watcher = watcher
        #: Requests that wait while the server does nothing.
        self._held: list[Callable[[], None]] | None = None

    @property
    def is_stalled(self) -> bool:
        return self._held is not None

    def stall(self) -> None:
        """Have requests wait."""
        if self._held is None:
            self._held = []

    def resume(self) -> None:
        held, self._held = self._held or [], None
        for serve in held:
            serve()

    async def put(self, namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        process = PROCESS.get()

        def effect() -> bool:
            is_new = (namespace, key) not in self.data
            if is_new or overwrite:
                self._watcher.puts(process, namespace, key, value)
                self.data[namespace, key] = value
            return is_new

        return bool(await self._call(effect))

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        value: bytes | None = await self._call(lambda: self.data.get((namespace, key)))
        return value

    async def get_many(self, namespace: bytes, keys: list[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        found: dict[str, bytes] = await self._call(
            lambda: {
                key: self.data[namespace, key] for key in keys if (namespace, key) in self.data
            }
        )
        return found

    async def keys(self, namespace: bytes, prefix: str) -> list[str]:
        process = PROCESS.get(None)

        def effect() -> list[str]:
            if process is not None and prefix == "job:":
                self._watcher.reads_records(process)
            return [
                key for space, key in self.data if space == namespace and key.startswith(prefix)
            ]

        found: list[str] = await self._call(effect)
        return found

    async def delete(self, namespace: bytes, key: str) -> None:
        process = PROCESS.get()

        def effect() -> None:
            if (namespace, key) in self.data:
                self._watcher.deletes(process, namespace, key)
                del self.data[namespace, key]

        await self._call(effect)

    async def exists(self, namespace: bytes | None, key: str) -> bool:
        return bool(await self._call(lambda: (namespace, key) in self.data))

    async def _call(self, effect: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        weather = self.weather
        is_lost, loses_answer = (
            weather.happens(weather.lost),
            weather.happens(weather.lost_answer),
        )

        def come_back(result: Any) -> None:
            if answer.done():
                return
            if is_lost or loses_answer:
                answer.set_exception(ConnectionError("the KV is away"))
            else:
                answer.set_result(result)

        def serve() -> None:
            result = None if is_lost else effect()
            loop.call_later(weather.way_s(), come_back, result, context=NOBODYS.copy())

        def arrive() -> None:
            if self._held is not None:
                self._held.append(serve)
            else:
                serve()

        loop.call_later(weather.way_s(), arrive, context=NOBODYS.copy())
        return await answer
