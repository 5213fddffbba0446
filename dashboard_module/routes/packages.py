"""The compatible face: packages of runtime environments, asked for and uploaded."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import tempfile

import aiohttp.web

from ray_jobs.errors import InvalidRequest, PackageNotFound, PackageTooLarge

from ..errors import plain_errors
from ..face import Face
from ..package_check import BadPackage, is_tar, needs_process
from ..ports import SMALL_PACKAGE_BYTES
from ..redaction import may_be_browser
from .answers import receive_body
from .route import Route

#: A file name: it becomes one where the package is unpacked.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!~@=-]{0,254}")


@plain_errors
async def get_package(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    uri = package_uri(request)
    # Pinned before it is looked for: found, it must not vanish before the job that needs it comes.
    # Not for a browser, which sends no job: an image of any web page would change what is kept.
    if not may_be_browser(request):
        await face.packages.pin(uri)
    if not await face.packages.exists(uri):
        raise PackageNotFound(f"Package {uri} does not exist")
    return aiohttp.web.Response()


@plain_errors
async def put_package(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    uri = package_uri(request)
    limit = face.packages.max_bytes
    length = request.content_length
    if length is not None and length > limit:
        raise too_large(f"The package is {length:,} bytes, over the limit of {limit:,}.")
    client = face.config.client(request)
    # Bodies that wait for their turn aren't read: they stay with their clients.
    async with face.uploads.hold(client):
        is_small = length is not None and length <= SMALL_PACKAGE_BYTES and not is_tar(uri)
        # Of a compressed body that is no length: aiohttp unpacks it.
        is_small = is_small and "Content-Encoding" not in request.headers
        # A file that nobody else sees, and that is gone with the request, however that ends.
        with io.BytesIO() if is_small else tempfile.TemporaryFile() as file:
            await receive_body(request, limit, too_large, file)
            is_costly = not is_small and await asyncio.to_thread(needs_process, uri, file)
            async with face.checks.hold(client) if is_costly else contextlib.nullcontext():
                try:
                    await face.packages.put(uri, file, by_process=is_costly)
                except BadPackage as error:
                    raise InvalidRequest(str(error)) from None
    return aiohttp.web.Response()


def too_large(message: str) -> PackageTooLarge:
    return PackageTooLarge(
        f"{message} Put large files into remote storage, and name them by a remote URI in the"
        " runtime_env."
    )


def package_uri(request: aiohttp.web.Request) -> str:
    """Return the URI of the package in the path. Raises `InvalidRequest`."""
    protocol, name = request.match_info["protocol"], request.match_info["name"]
    if protocol != "gcs":
        raise InvalidRequest(f"Only packages of the protocol gcs are kept here, not {protocol!r}.")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"A package's name has letters, digits, and _ . + ! ~ @ = - only, got {name[:80]!r}."
        )
    return f"{protocol}://{name}"


ROUTES = [
    Route("GET", "/api/packages/{protocol}/{name}", "get_package", get_package),
    Route("PUT", "/api/packages/{protocol}/{name}", "upload_package", put_package),
]
