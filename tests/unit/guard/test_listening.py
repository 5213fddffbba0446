"""Where the gateway may listen without a token: at loopback addresses, and no other."""

from __future__ import annotations

import socket

import pytest
from ray_jobs.dashboard_module.listening import is_this_machines_only

from ray_jobs.cli.watcher import bound
from tests.addresses import own_address


def is_allowed(host: str) -> bool:
    listeners = bound(host, 0)
    try:
        found: bool = is_this_machines_only(listeners)
        return found
    finally:
        for each in listeners:
            each.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback(host: str) -> None:
    assert is_allowed(host) is True


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0"])
def test_every_address(host: str) -> None:
    assert is_allowed(host) is False


def test_own_address() -> None:
    assert is_allowed(own_address()) is False


def test_a_name_is_what_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called, and if only one of its addresses is open to others."""

    def resolve(*addresses: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    resolve("127.0.1.1")
    assert is_allowed("ray.example.com") is True
    for addresses in (["0.0.0.0"], ["127.0.0.1", own_address()]):
        resolve(*addresses)
        assert is_allowed("localhost") is False
