"""Hosts of their own for worker nodes: network namespaces on one bridge. Needs root and `ip`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

#: Of the addresses for documentation and benchmarks (RFC 2544), which nothing else here uses.
NETWORK = "198.18.77"
HEAD_IP = f"{NETWORK}.1"
PREFIX_BITS = 24


def ip(*arguments: str) -> None:
    """Run `ip`. Raises CalledProcessError, with what it said, if it can't."""
    subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL)


class Host:
    """A host with an address of its own, whose cable can be pulled."""

    def __init__(self, bridge: str, number: int) -> None:
        self.ip = f"{NETWORK}.{number + 1}"
        self._name = f"{bridge}-{number}"
        self._bridge = bridge
        #: What runs a command there.
        self.inside = ("ip", "netns", "exec", self._name)

    def set_up(self) -> None:
        ip("netns", "add", self._name)
        ip("link", "add", self._name, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        ip("link", "set", self._name, "master", self._bridge, "up")
        ip("-n", self._name, "addr", "add", f"{self.ip}/{PREFIX_BITS}", "dev", "eth0")
        ip("-n", self._name, "link", "set", "lo", "up")
        ip("-n", self._name, "link", "set", "eth0", "up")

    def cut_off(self) -> None:
        ip("link", "set", self._name, "down")

    def connect(self) -> None:
        ip("link", "set", self._name, "up")

    def take_down(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self._name)  # its end of the cable goes with it


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Have hosts on a bridge on which this one is `HEAD_IP`."""
    bridge = f"rjt{os.getpid() % 100_000}"
    ip("link", "add", bridge, "type", "bridge")
    found = [Host(bridge, number) for number in range(1, count + 1)]
    try:
        ip("addr", "add", f"{HEAD_IP}/{PREFIX_BITS}", "dev", bridge)
        ip("link", "set", bridge, "up")
        for host in found:
            host.set_up()
        yield found
    finally:
        for host in found:
            host.take_down()
        ip("link", "del", bridge)
