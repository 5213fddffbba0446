"""The description of every route, for people and programs: OpenAPI 3.1, `openapi.json`."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import functools
import pathlib

import aiohttp.web

from ray_jobs.models import API_PREFIX

from ..errors import json_errors
from ..face import Face
from .answers import json_bytes
from .route import Route


@functools.cache
def document() -> bytes:
    """Return the document. It is data of the package."""
    return (pathlib.Path(__file__).parent.parent / "openapi.json").read_bytes()


@json_errors
async def get_openapi(_face: Face, _request: aiohttp.web.Request) -> aiohttp.web.Response:
    return json_bytes(document())


ROUTES = [Route("GET", f"{API_PREFIX}/openapi.json", "own_get_openapi", get_openapi)]
