"""What browsers send for a page of http://localhost:3000 that asks http://127.0.0.1:8265.

Chromium 156 and Firefox 153 sent these to a server that printed them; headers that say nothing of
the page (languages, encodings) are left out. Safari's are written from its documentation: it has
`Sec-Fetch-*` since 16.4, and none of the three has them for a plain http:// address that isn't
this machine's.
"""

from __future__ import annotations

PAGE = "http://localhost:3000"

_CHROMIUM = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/156.0.0.0 Safari/537.36",
    "Sec-CH-UA": '"Not:A-Brand";v="8", "Chromium";v="156"',
    "Sec-CH-UA-Mobile": "?0",
    "Sec-CH-UA-Platform": '"Linux"',
}
_FIREFOX = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0",
}
_SAFARI = {
    "User-Agent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/18.4 Safari/605.1.15",
}
_OLD_SAFARI = {
    "User-Agent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/15.6 Safari/605.1.15",
}


def _fetch(site: str, mode: str, dest: str) -> dict[str, str]:
    return {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}


_CROSS_FETCH = _fetch("cross-site", "cors", "empty")
_REFERER = {"Referer": f"{PAGE}/"}
_ORIGIN = {"Origin": PAGE}

#: Reads of a foreign page, by name.
FOREIGN_READS: dict[str, dict[str, str]] = {
    "chromium fetch": {**_CHROMIUM, **_ORIGIN, **_CROSS_FETCH, **_REFERER},
    "chromium fetch, no-cors, no referrer": {
        **_CHROMIUM,
        **_fetch("cross-site", "no-cors", "empty"),
    },
    "chromium script": {**_CHROMIUM, **_fetch("cross-site", "no-cors", "script"), **_REFERER},
    "chromium image": {**_CHROMIUM, **_fetch("cross-site", "no-cors", "image"), **_REFERER},
    "chromium iframe": {**_CHROMIUM, **_fetch("cross-site", "navigate", "iframe"), **_REFERER},
    "chromium, same host, other port": {**_CHROMIUM, **_fetch("same-site", "no-cors", "empty")},
    "firefox fetch": {**_FIREFOX, **_REFERER, **_ORIGIN, **_CROSS_FETCH, "Priority": "u=4"},
    "firefox script": {**_FIREFOX, **_REFERER, **_fetch("cross-site", "no-cors", "script")},
    "firefox iframe": {**_FIREFOX, **_REFERER, **_fetch("cross-site", "navigate", "iframe")},
    "safari fetch": {**_SAFARI, **_ORIGIN, **_REFERER, **_CROSS_FETCH},
    "safari script": {**_SAFARI, **_REFERER, **_fetch("cross-site", "no-cors", "script")},
    "old safari fetch": {**_OLD_SAFARI, **_ORIGIN, **_REFERER},
    "any browser, sandboxed page": {**_FIREFOX, "Origin": "null"},
}

#: Reads of a foreign page that don't say so, by name: of a plain http:// address that isn't this
#: machine's. They look as those of the server's own pages, and as opening a link.
UNTOLD_READS: dict[str, dict[str, str]] = {
    "chromium script": {**_CHROMIUM, **_REFERER},
    "firefox image": {**_FIREFOX, **_REFERER},
    "old safari script, no referrer": _OLD_SAFARI,
}

#: State changes of a foreign page, by name. A preflight comes before some, and fails.
FOREIGN_WRITES: dict[str, dict[str, str]] = {
    "chromium fetch, no-cors": {
        **_CHROMIUM,
        **_ORIGIN,
        **_fetch("cross-site", "no-cors", "empty"),
        "Content-Type": "text/plain;charset=UTF-8",
    },
    "chromium form": {
        **_CHROMIUM,
        **_ORIGIN,
        **_fetch("cross-site", "navigate", "document"),
        **_REFERER,
        "Content-Type": "text/plain",
        "Upgrade-Insecure-Requests": "1",
    },
    "firefox fetch, no-cors, no referrer": {
        **_FIREFOX,
        "Origin": "null",
        **_fetch("cross-site", "no-cors", "empty"),
        "Content-Type": "text/plain;charset=UTF-8",
    },
    "firefox form": {
        **_FIREFOX,
        **_ORIGIN,
        **_REFERER,
        **_fetch("cross-site", "navigate", "document"),
        "Content-Type": "text/plain",
    },
    "safari fetch": {**_SAFARI, **_ORIGIN, **_REFERER, **_CROSS_FETCH},
    "old safari form": {**_OLD_SAFARI, **_ORIGIN, **_REFERER, "Content-Type": "text/plain"},
    # With DNS rebinding a page is of the same origin, and Firefox and Safari let it choose its
    # User-Agent: what is left is the Origin of every request that isn't a GET.
    "firefox, rebinding, own user agent": {"User-Agent": "curl/8", "Origin": PAGE},
    "chromium, rebinding": {**_CHROMIUM, **_fetch("same-origin", "cors", "empty")},
}

#: How WebSockets are opened by a foreign page. Chromium tells no more than the origin.
FOREIGN_WEBSOCKETS: dict[str, dict[str, str]] = {
    "chromium": {
        "User-Agent": _CHROMIUM["User-Agent"],
        **_ORIGIN,
        "Cache-Control": "no-cache",
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
    },
    "firefox": {
        **_FIREFOX,
        **_ORIGIN,
        "Sec-WebSocket-Extensions": "permessage-deflate",
        **_fetch("cross-site", "websocket", "empty"),
    },
    "safari": {**_SAFARI, **_ORIGIN},
}


def own_reads(origin: str) -> dict[str, dict[str, str]]:
    """Return what a page of the server's own origin sends, and opening a link to the server."""
    referer = {"Referer": f"{origin}/"}
    return {
        "chromium fetch": {**_CHROMIUM, **_fetch("same-origin", "cors", "empty"), **referer},
        "firefox fetch": {**_FIREFOX, **_fetch("same-origin", "cors", "empty"), **referer},
        "safari fetch": {**_SAFARI, **_fetch("same-origin", "cors", "empty"), **referer},
        "old safari fetch": {**_OLD_SAFARI, **referer},
        "chromium, address typed": {**_CHROMIUM, **_fetch("none", "navigate", "document")},
        "chromium, link": {**_CHROMIUM, **_fetch("cross-site", "navigate", "document"), **_REFERER},
        "firefox, link": {**_FIREFOX, **_fetch("cross-site", "navigate", "document"), **_REFERER},
    }


def own_websockets(origin: str) -> dict[str, dict[str, str]]:
    """Return how a page of the server's own origin opens WebSockets."""
    return {
        "chromium": {"User-Agent": _CHROMIUM["User-Agent"], "Origin": origin},
        "firefox": {
            **_FIREFOX,
            "Origin": origin,
            **_fetch("same-origin", "websocket", "empty"),
        },
        "safari": {**_SAFARI, "Origin": origin},
    }
