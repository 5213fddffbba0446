"""Where the job server is. Pure: no network, no ray."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ray_jobs.credentials import without_userinfo
from ray_jobs.errors import InvalidAddress

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
DASHBOARD_PORT = 8265
#: The port of a cluster's GCS, unless it was chosen at `ray start --port`.
GCS_PORT = 6379

#: In the order in which they are asked, after the argument.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Address:
    """The address of a job server, taken apart."""

    url: str  #: Scheme, host, port and path prefix; no trailing slash, no credentials.
    host: str
    #: The value of an Authorization header, from the URL's user and password.
    basic_auth: str | None
    source: str  #: Who gave it: "address", the name of an environment variable, or "default".
    is_gcs_like: bool  #: It has the port of a GCS, which is not a job server.

    @property
    def is_loopback(self) -> bool:
        """Return whether the address is on this machine (so that no proxy is asked)."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def hint(self) -> str:
        """Return what a user can do when nothing answers there."""
        if self.is_gcs_like:
            return (
                f"Port {GCS_PORT} is that of the cluster's GCS, not of its job server. Set "
                f"RAY_API_SERVER_ADDRESS=http://{_bracketed(self.host)}:{DASHBOARD_PORT}"
                " (or the dashboard's own port), or give that address."
            )
        if self.source == "default":
            return (
                "That is the default. Set RAY_API_SERVER_ADDRESS or give the address of the "
                "cluster's dashboard, such as http://head-node:8265."
            )
        origin = "" if self.source == "address" else f" (it comes from {self.source})"
        return f"Check the address{origin}, and that the cluster's dashboard runs."


def redact(text: str) -> str:
    """Return a text without the passwords and tokens of the URLs in it."""
    return without_userinfo(text, "***")


def find_address(
    argument: str | None = None, environment: Mapping[str, str] | None = None
) -> Address:
    """Find the job server: the argument, RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else the default.

    Raises:
        InvalidAddress: the one that counts is malformed.
    """
    environment = os.environ if environment is None else environment
    if argument is not None and not isinstance(argument, str):
        raise InvalidAddress(f"The address must be a string, not {type(argument).__name__}.")
    if argument is not None and argument.strip():
        return parse_address(argument, "address")
    for name in ADDRESS_VARIABLES:
        if environment.get(name, "").strip():
            return parse_address(environment[name], name)
    return parse_address(DEFAULT_ADDRESS, "default")


def parse_address(text: str, source: str = "address") -> Address:
    """Take an address apart.

    Raises:
        InvalidAddress: it is malformed, or has a scheme other than http, https and ray.
    """
    text = text.strip()
    if text in {"auto", "local"}:
        # Ray would look for a cluster on this machine: its dashboard is here, by default.
        text = DEFAULT_ADDRESS
    found = _SCHEME.match(text)
    if found is None:
        text = f"http://{text}"
        scheme = "http"
    else:
        scheme = found[1].lower()
    if not _is_unicode(text):
        raise _invalid(text, "it holds bytes that aren't UTF-8")
    if scheme not in {"http", "https", "ray"}:
        raise _invalid(text, f"its scheme is {scheme}, not http, https or ray")
    try:
        parts = urlsplit(text)
        port = parts.port
        host = parts.hostname or ""
    except ValueError as error:
        # With a slash in a password, what stands before that would be the port.
        is_shown = redact(text) == text
        why = str(error).rstrip(".") if is_shown else "its host or its port is malformed"
        raise _invalid(text, why) from None
    _check(text, parts.netloc.rpartition("@")[2], host, port)
    if parts.query or parts.fragment:
        raise _invalid(text, "it has a query or a fragment")
    path = parts.path.rstrip("/")
    if scheme == "ray":
        # Only a Ray Client could be asked where the dashboard is; its usual port is a good guess.
        scheme, port, path = "http", DASHBOARD_PORT, ""
    netloc = _bracketed(host) + (f":{port}" if port is not None else "")
    return Address(
        url=f"{scheme}://{netloc}{path}",
        host=host,
        basic_auth=_basic_auth(parts.username, parts.password),
        source=source,
        is_gcs_like=port == GCS_PORT,
    )


def _check(text: str, netloc: str, host: str, port: int | None) -> None:
    if not host:
        raise _invalid(text, "it has no host")
    if not netloc.startswith("[") and netloc.count(":") > 1:
        raise _invalid(text, "an IPv6 address must be in brackets, as in http://[::1]:8265")
    if re.search(r"[\s%\\<>{}|^`\"]", host) and not netloc.startswith("["):
        raise _invalid(text, "its host has characters that no host name has")
    if port == 0:
        raise _invalid(text, "its port is 0")


def _invalid(text: str, why: str) -> InvalidAddress:
    return InvalidAddress(
        f"{redact(text)!r} is not the address of a job server: {why}.",
        hint="Give the URL of the cluster's dashboard, such as http://head-node:8265.",
    )


def _is_unicode(text: str) -> bool:
    """Return whether a text has no surrogates, as which Python shows bytes that aren't UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _basic_auth(username: str | None, password: str | None) -> str | None:
    if not username and not password:
        return None
    pair = f"{unquote(username or '')}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")
