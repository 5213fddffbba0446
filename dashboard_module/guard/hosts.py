"""Which names a server answers to: against DNS rebinding.

A foreign page whose name is made to point at this machine is of the same origin as the server, for
its browser. What it can't change is the name in its requests' `Host`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import threading
from collections.abc import Iterable

#: In a list of names: any name.
ANY_HOST = "*"
_CACHED_HOSTS = 1024
#: What may be listed, but for IP addresses.
_ENTRY = re.compile(r"\*|(\*?\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?(:[0-9]+)?", re.IGNORECASE)


class HostList:
    """The names in `Host` that are taken.

    Always: this machine's own names and the loopback's, and any IP address, which no name server
    can make point elsewhere.

    Args:
        extra: More names. One that begins with a dot, or with `*.` as in certificates, stands for
            its subdomains too; `*` for any.
        listening: The address on which the server listens.
        full_name: Whether the machine's full name is asked for, in a thread: a name server that is
            down takes seconds.
    """

    def __init__(
        self, extra: Iterable[str] = (), *, listening: str | None = None, full_name: bool = True
    ) -> None:
        self._extra = {_without_star(name_of(name)) for name in extra if _is_possible(name)}
        own = socket.gethostname().lower()
        short = own.partition(".")[0]
        self._own = {"localhost", own, short, f"{short}.local"}
        if listening:
            self._own.add(name_of(listening))
        # What is asked once a request must not be looked up anew each time.
        self._allowed = functools.lru_cache(_CACHED_HOSTS)(self._look_up)
        if full_name:
            threading.Thread(target=self._learn, name="ray-jobs-hostname", daemon=True).start()

    def allows(self, host: str | None) -> bool:
        """Return whether the value of a `Host` header is taken. None, no header: no browser."""
        return not host or self._allowed(host)

    def is_added(self, host: str) -> bool:
        """Return whether the host of a URL (without its port) was allowed explicitly."""
        name = name_of(host)
        return name in self._extra or any(
            name.endswith(suffix) or name == suffix[1:]
            for suffix in self._extra
            if suffix.startswith(".")
        )

    def _look_up(self, host: str) -> bool:
        name = name_of(host)
        return (
            ANY_HOST in self._extra
            or name in self._own
            or name.endswith(".localhost")
            or is_ip_address(name)
            or self.is_added(name)
        )

    def _learn(self) -> None:
        self._own.add(socket.getfqdn().lower())
        self._allowed.cache_clear()


def impossible(names: Iterable[str]) -> list[str]:
    """Return those of a list of names that can be none: a `HostList` leaves them out."""
    return [name for name in names if not _is_possible(name)]


def _is_possible(name: str) -> bool:
    return bool(_ENTRY.fullmatch(name.strip())) or is_ip_address(name_of(name))


def _without_star(name: str) -> str:
    return name[1:] if name.startswith("*.") else name


def name_of(host: str) -> str:
    """Return the name in a `host:port`, in small letters, without brackets and a final dot."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") == 1:
        host = host.partition(":")[0]
    return host.rstrip(".")


def is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
