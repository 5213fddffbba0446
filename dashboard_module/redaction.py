"""Which requests are browsers', from which secrets are kept as Ray's dashboard does. Pure."""

from __future__ import annotations

import aiohttp.web

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
