"""What a route is."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import dataclasses

from ..errors import Handler


@dataclasses.dataclass(frozen=True)
class Route:
    """One method of one path. No exception but a cancellation leaves its handler."""

    method: str  #: "GET"
    path: str  #: in aiohttp's notation: "/api/jobs/{job_id}"
    name: str  #: unique, fit for metrics: "get_job"
    handler: Handler
