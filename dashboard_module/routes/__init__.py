"""Every route of the face, for both of its hosts."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp.web

from ..errors import Handler
from . import jobs, logs, openapi, own, packages
from .route import Route

if TYPE_CHECKING:
    from ..face import Face

ROUTES: list[Route] = [
    *jobs.ROUTES,
    *logs.ROUTES,
    *packages.ROUTES,
    *own.ROUTES,
    *openapi.ROUTES,
]


def definitions(
    face: Face, handler_of: Callable[[Route], Handler] = lambda route: route.handler
) -> list[aiohttp.web.RouteDef]:
    """Return every route as aiohttp wants it, for an application of our own.

    HEAD is taken where GET is, as in Ray's dashboard.
    """
    return [
        aiohttp.web.RouteDef(
            route.method, route.path, functools.partial(handler_of(route), face), {}
        )
        for route in ROUTES
    ]


__all__ = ["ROUTES", "Route", "definitions"]
