"""Which requests a foreign web page made, and what keeps answers from it. Pure.

What a page can't forge: its browser sets `Origin` and the `Sec-Fetch-*` headers itself.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import aiohttp.web

from .hosts import HostList, name_of

#: Of every answer. A request that doesn't say whose it is (a script or an image of a page, at a
#: plain http:// address that isn't this machine's) is answered, and the browser told to keep that
#: from pages of other origins. What a job printed is no script and no page, whatever it looks like.
ANSWER_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_of_foreign_page(request: aiohttp.web.BaseRequest, hosts: HostList) -> bool:
    """Return whether a web page of another origin than the server's asks.

    Opening a link isn't that: the answer is shown to the user, and not to the page with the link.

    Args:
        hosts: The names that were added to it may be those of a proxy, whose pages are ours then.
            Where the browser itself says whose page asks, that counts and nothing else.
    """
    headers = request.headers
    site = headers.get("Sec-Fetch-Site")
    origin = headers.get("Origin")
    if site is None:
        # Without an origin: no browser; or one that asks for a page of the same origin.
        return origin is not None and not is_own_origin(origin, headers.get("Host", ""), hosts)
    return site not in ("same-origin", "none") and not (
        origin is None
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest") == "document"
    )


def is_own_origin(origin: str, host: str, hosts: HostList) -> bool:
    """Return whether an origin is that of the server: of its `Host`, or an added name."""
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        name = parts.hostname
    except ValueError:
        return False
    if not name or port is None:  # "null", and schemes of browsers' own
        return False
    if hosts.is_added(name):
        return True
    try:
        host_port = urlsplit(f"//{host}").port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):
        return False
    return name_of(host) == name_of(f"[{name}]" if ":" in name else name) and host_port == port
