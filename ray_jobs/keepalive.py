"""What the kernel is asked to do about peers that are gone, or as good as gone."""

from __future__ import annotations

import contextlib
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


def drop_when_stalled(sock: socket.socket | None, timeout_s: float) -> None:
    """Have the kernel end a connection whose peer takes nothing of what is sent for so long.

    A peer that reads slowly is no such one. No-op without a socket, or where the kernel can't.

    Args:
        timeout_s: 0 has it wait for as long as the peer is there.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux's
    if sock is not None and option is not None:
        with contextlib.suppress(OSError):  # it was closed just now, or isn't TCP
            sock.setsockopt(socket.IPPROTO_TCP, option, int(timeout_s * 1000))
