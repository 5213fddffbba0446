"""Who may connect to the gateway, as far as its sockets say."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable


def is_this_machines_only(listeners: Iterable[socket.socket]) -> bool:
    """Return whether sockets are bound where only this machine's own processes reach them.

    What counts is the address: a name may stand for any.
    """
    return all(ipaddress.ip_address(each.getsockname()[0]).is_loopback for each in listeners)
