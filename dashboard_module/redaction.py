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


def may_be_browser(request: aiohttp.web.BaseRequest) -> bool:
    """Return whether a request is a browser's, or looks a little like one.

    A page whose name points here (DNS rebinding) is of the server's own origin. Firefox and Safari
    let it choose its User-Agent, and it may keep back the Referer; not the languages, which the
    browser adds where it doesn't. Too little to refuse a client for.
    """
    return is_browser_request(request) or "Accept-Language" in request.headers
