"""Keeping secrets from browsers, as Ray's dashboard does and beyond. Pure.

The values of `env_vars`, wherever they stand in the job, and the credentials of URLs.
"""

from __future__ import annotations

import aiohttp.web

from ray_jobs.models import JobInfo
from ray_jobs.scrubbing import scrubbed, scrubbed_deep, scrubbed_runtime_env, secret_values

#: What browsers say of themselves, of the page that asks, and of the request that they will make.
_BROWSER_HEADERS = frozenset(
    {
        "Origin",
        "Referer",
        "Sec-Fetch-Site",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Dest",
        "Sec-Fetch-User",
        "Access-Control-Request-Method",
        "Access-Control-Request-Headers",
    }
)


def is_browser_request(request: aiohttp.web.BaseRequest) -> bool:
    """Return whether a request looks like a browser's, by the signs that Ray goes by."""
    headers = request.headers
    if headers.get("User-Agent", "").startswith("Mozilla"):
        return True
    return any(name in headers for name in _BROWSER_HEADERS)


def redact(info: JobInfo) -> None:
    """Take the secrets out of a job that is about to be shown. What it refers to is copied."""
    values = secret_values(info.runtime_env)
    info.runtime_env = scrubbed_runtime_env(info.runtime_env)
    info.entrypoint = scrubbed(info.entrypoint or "", values)
    info.metadata = scrubbed_deep(info.metadata, values)
    if info.message:
        info.message = scrubbed(info.message, values)
