"""Every route of the face, for both of its hosts."""

from __future__ import annotations

from . import jobs, logs, openapi, own, packages
from .route import Route

ROUTES: list[Route] = [
    *jobs.ROUTES,
    *logs.ROUTES,
    *packages.ROUTES,
    *own.ROUTES,
    *openapi.ROUTES,
]

__all__ = ["ROUTES", "Route"]
