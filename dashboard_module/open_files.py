"""Open files: the process may have only so many, and each connection is one.

At the limit nothing can be accepted, opened or started any more. So connections that come close to
it are answered 503, and those that would stay for long somewhat earlier.
"""

from __future__ import annotations

import resource

import aiohttp.web

from ray_jobs.errors import ServerNotReady

#: Kept for what an answer needs (logs, packages, the cluster), and for connections that are about
#: to be refused.
RESERVED_FILES = 320
#: Kept for short requests by not giving it to tails and waits: one file in so many.
SHARE_OF_SHORT_REQUESTS = 8
RETRY_AFTER_S = 5


class ServerFull(ServerNotReady):
    """There is no room for another connection; this one ends with the answer."""


def file_limit() -> int:
    """Return how many files this process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_limit() -> int:
    """Have as many open files as this process may, and return how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def is_crowded(request: aiohttp.web.Request, *, stays: bool) -> bool:
    """Return whether there is no room for this request.

    The kernel gives each file the lowest free number, so a connection's own number tells how many
    files are open.

    Args:
        stays: The request holds its connection for as long as a job runs.
    """
    connection = request.get_extra_info("socket")
    if connection is None:
        return False  # it is gone
    room = file_limit() - RESERVED_FILES
    if stays:
        room -= room // SHARE_OF_SHORT_REQUESTS
    return bool(connection.fileno() >= room)


def need_room(request: aiohttp.web.Request, *, stays: bool) -> None:
    """Raise `ServerFull` if there is no room for this request."""
    if is_crowded(request, stays=stays):
        raise ServerFull(
            "The server has as many connections as it may have now (its process may open"
            f" {file_limit():,} files); try again later.",
            retry_after_s=RETRY_AFTER_S,
        )
