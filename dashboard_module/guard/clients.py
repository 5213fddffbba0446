"""Who asks: the address, through proxies that are trusted, and the name in the token. Pure."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Sequence

import aiohttp.web
import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: How the cluster's own token is called: there is one.
CLUSTER_TOKEN_NAME = "cluster"
_TOKEN_COOKIE = "ray-authentication-token"
_MAX_NAME_CHARACTERS = 200


class _Claims(msgspec.Struct):
    """Of a JSON Web Token, such as a Kubernetes service account's."""

    sub: str = ""


def addresses(
    request: aiohttp.web.BaseRequest, trusted: Sequence[Network]
) -> tuple[str, str | None]:
    """Return the client's address, and that of the proxy if it came through a trusted one.

    `X-Forwarded-For` is what anyone may write, but for the part that a trusted proxy added: it is
    read from its end, up to the first address that is no such proxy's.
    """
    peer = request.remote or ""
    if not trusted or not _is_in(peer, trusted):
        return peer, None
    hops = [
        hop.strip()
        for line in request.headers.getall("X-Forwarded-For", [])
        for hop in line.split(",")
    ]
    client = peer
    for hop in reversed(hops):
        if not _is_address(hop):
            break
        client = hop
        if not _is_in(hop, trusted):
            break
    return client, peer if client != peer else None


def counted_as(client: str) -> str:
    """Return by what a client is counted that has an address: of IPv6, whoever has one has 2**64.

    They share their first 64 bits.
    """
    address = _parsed(client)
    if not isinstance(address, ipaddress.IPv6Address):
        return client if address is None else str(address)
    return str(ipaddress.IPv6Network((address.packed, 64), strict=False))


def authorization(request: aiohttp.web.BaseRequest) -> str:
    """Return what a request says for itself, from the headers and the cookie that Ray takes."""
    headers = request.headers
    found = headers.get("Authorization") or headers.get("X-Ray-Authorization")
    if not found and (cookie := request.cookies.get(_TOKEN_COOKIE)):
        found = f"Bearer {cookie}"
    return found or ""


def token_name(authorization: str) -> str:
    """Return who a token that was accepted belongs to, and nothing by which it could be guessed."""
    parts = authorization.rpartition(" ")[2].split(".")
    if len(parts) != 3:
        return CLUSTER_TOKEN_NAME
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        name = msgspec.json.decode(payload, type=_Claims).sub
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        return CLUSTER_TOKEN_NAME
    return name[:_MAX_NAME_CHARACTERS] or CLUSTER_TOKEN_NAME


def networks(texts: Sequence[str]) -> tuple[list[Network], list[str]]:
    """Return addresses and networks (`10.0.0.0/8`), and the texts that are none."""
    found, wrong = [], []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            wrong.append(text)
    return found, wrong


def _is_address(text: str) -> bool:
    return _parsed(text) is not None


def _is_in(text: str, trusted: Sequence[Network]) -> bool:
    address = _parsed(text)
    return address is not None and any(address in network for network in trusted)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A server that listens on IPv6 sees IPv4 clients so.
    return getattr(address, "ipv4_mapped", None) or address
