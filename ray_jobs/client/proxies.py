"""The HTTP proxy on the way to a job server, as the environment wants it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ray_jobs.client.address import Address, redact
from ray_jobs.errors import InvalidAddress

if TYPE_CHECKING:
    from yarl import URL

HINT = "Check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY; NO_PROXY lists hosts that need no proxy."


def find_proxy(address: Address) -> URL | None:
    """Return the proxy for a server: HTTP_PROXY or HTTPS_PROXY by its scheme, else ALL_PROXY.

    None for servers on this machine, and for those in NO_PROXY.

    Raises:
        InvalidAddress: it is malformed, or no HTTP proxy.
    """
    if address.is_loopback or not _may_have_any():
        return None
    # Here, since it takes a while and is seldom wanted.
    import urllib.request

    parts = urlsplit(address.url)
    proxies = urllib.request.getproxies()
    if any(map(urllib.request.proxy_bypass, (address.host, parts.netloc))) or _in_networks(
        address.host, proxies.get("no", "")
    ):
        return None
    text = (proxies.get(parts.scheme) or proxies.get("all") or "").strip()
    if not text:
        return None
    from yarl import URL

    if "://" not in text:
        text = f"http://{text}"
    try:
        proxy = URL(text)
    except ValueError as error:
        raise InvalidAddress(f"{redact(text)!r} is not a proxy: {error}.", hint=HINT) from None
    if proxy.scheme not in {"http", "https"} or not proxy.host:
        raise InvalidAddress(
            f"The proxy {redact(text)!r} on the way to {address.url} is not supported: it must be "
            "http://host:port or https://host:port.",
            hint=HINT,
        )
    return proxy


def _may_have_any() -> bool:
    """Return whether `getproxies` could find any; macOS has them in its own settings too."""
    return sys.platform == "darwin" or any(name[-6:].lower() == "_proxy" for name in os.environ)


def _in_networks(host: str, no_proxy: str) -> bool:
    """Return whether a host is an address in one of the networks (10.0.0.0/8) of NO_PROXY."""
    import ipaddress

    for entry in no_proxy.split(","):
        with contextlib.suppress(ValueError):  # a name
            if "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip()):
                return True
    return False
