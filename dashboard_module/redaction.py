"""Keeping the values of `env_vars` from browsers, as Ray's dashboard does. Pure."""

from __future__ import annotations

from typing import Any

import aiohttp.web

PLACEHOLDER = "<redacted>"

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


def holds_secrets(runtime_env: dict[str, Any] | None) -> bool:
    """Return whether `redacted` would change a runtime environment."""
    return bool(runtime_env) and isinstance((runtime_env or {}).get("env_vars"), dict)


def redacted(runtime_env: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy of a runtime environment in which the variables keep only their names."""
    if not runtime_env or not holds_secrets(runtime_env):
        return runtime_env
    return {**runtime_env, "env_vars": dict.fromkeys(runtime_env["env_vars"], PLACEHOLDER)}
