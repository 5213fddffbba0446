"""The addresses of nodes' agents, as Ray leaves them in the KV."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ray_jobs._ray import AgentAddresses


class FakeKv:
    def __init__(self, value: bytes | None) -> None:
        self.value = value

    async def get(self, namespace: bytes, key: str) -> bytes | None:
        return self.value


@pytest.mark.parametrize(
    ("value", "url"),
    [
        (b'["10.0.0.1", 52365, 4]', "http://10.0.0.1:52365"),
        (b'["::1", 52365, 4]', "http://[::1]:52365"),
        (None, None),
        # Of another Ray. Who starts a job asks again as long as this raises.
        (b'["10.0.0.1", 52365]', None),
        (b"10.0.0.1", None),
        (b"4", None),
    ],
)
async def test_address(value: bytes | None, url: str | None) -> None:
    assert await AgentAddresses(cast(Any, FakeKv(value))).of("node") == url
