"""The SDK: what runs on a laptop. Never imports ray.

Its names are imported with their first use: aiohttp alone takes most of the time in which a
command line should have answered.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_jobs.client.async_client import AsyncJobSubmissionClient
    from ray_jobs.client.sync_client import JobSubmissionClient
    from ray_jobs.client.types import Progress, ServerInfo

__all__ = ["AsyncJobSubmissionClient", "JobSubmissionClient", "Progress", "ServerInfo"]

_MODULES = {
    "AsyncJobSubmissionClient": "async_client",
    "JobSubmissionClient": "sync_client",
    "Progress": "types",
    "ServerInfo": "types",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
