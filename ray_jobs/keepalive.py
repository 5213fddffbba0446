"""TCP keepalive for the long-lived connections of both sides."""

from __future__ import annotations

import socket

IDLE_S = 30
INTERVAL_S = 10
PROBES = 4


def notice_dead_peer(sock: socket.socket | None) -> None:
    """Have the kernel notice a peer that vanished while there is nothing to send.

    No-op without a socket: the connection was closed already.
    """
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS names the first of them otherwise.
    settings = {"TCP_KEEPIDLE": IDLE_S, "TCP_KEEPINTVL": INTERVAL_S, "TCP_KEEPCNT": PROBES}
    for name, value in settings.items():
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
