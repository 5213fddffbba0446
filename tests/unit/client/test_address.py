from __future__ import annotations

import base64

import pytest

from ray_jobs.client.address import find_address, parse_address, redact
from ray_jobs.errors import InvalidAddress


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("http://host:8265///", "http://host:8265"),
        ("host:8265", "http://host:8265"),
        ("host", "http://host"),
        ("host:8265/team-a/ray", "http://host:8265/team-a/ray"),
        ("https://host/team-a/ray/", "https://host/team-a/ray"),
        ("HTTPS://Host/a", "https://host/a"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("[::1]:8265", "http://[::1]:8265"),
        (" http://host ", "http://host"),
        ("auto", "http://127.0.0.1:8265"),
        ("local", "http://127.0.0.1:8265"),
        ("ray://head:10001", "http://head:8265"),
        ("ray://[::1]:10001", "http://[::1]:8265"),
        ("https://user:secret@host:1", "https://host:1"),
        ("http://host/a%20b", "http://host/a%20b"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert parse_address(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host",
        "anyscale://cluster",
        "http://",
        "http://:8265",
        "host:port",
        "host:99999",
        "host:0",
        "::1",
        "http://::1:8265",
        "http://[::1:8265",
        "http://ho st",
        "http://host?x=1",
        "http://host/#a",
    ],
)
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address(text)
    assert caught.value.hint


def test_order_of_sources() -> None:
    environment = {"RAY_API_SERVER_ADDRESS": "http://api", "RAY_ADDRESS": "http://ray"}
    assert find_address("http://argument", environment).url == "http://argument"
    assert find_address(None, environment).url == "http://api"
    assert find_address(None, environment).source == "RAY_API_SERVER_ADDRESS"
    assert find_address("", {"RAY_ADDRESS": "http://ray"}).url == "http://ray"
    assert find_address(None, {"RAY_ADDRESS": ""}).url == "http://127.0.0.1:8265"


def test_address_of_another_type() -> None:
    with pytest.raises(InvalidAddress, match="string, not int"):
        find_address(8265, {})  # type: ignore[arg-type]


def test_user_and_password_become_a_header() -> None:
    address = parse_address("http://us%20er:p%40ss@host")
    assert address.basic_auth == "Basic " + base64.b64encode(b"us er:p@ss").decode()
    assert parse_address("http://host").basic_auth is None


@pytest.mark.parametrize(
    "text",
    [
        "ftp://user:secret@host",
        "http://secret@host:99999",
        "secret@host:99999",
        "http://user:se'secret@host:99999",
        "http://user:secret/secret@host",
        "user:secret@host\udc80",
        "user:secret@host?x",
    ],
)
def test_the_password_of_a_malformed_address_is_not_shown(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)
    assert "://***@host" in str(caught.value)


def test_redact() -> None:
    assert redact("see https://a:b@host/x and http://host:1/y, git+https://ghp_tok@host") == (
        "see https://***@host/x and http://host:1/y, git+https://***@host"
    )


def test_address_of_a_gcs_gets_a_hint() -> None:
    address = find_address(None, {"RAY_ADDRESS": "10.0.0.1:6379"})
    assert address.url == "http://10.0.0.1:6379"
    assert "RAY_API_SERVER_ADDRESS=http://10.0.0.1:8265" in address.hint


def test_hints_say_where_the_address_comes_from() -> None:
    assert "RAY_ADDRESS" in find_address(None, {"RAY_ADDRESS": "host:1"}).hint
    assert "default" in find_address(None, {}).hint
    assert "comes from" not in find_address("host", {}).hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [("localhost", True), ("127.0.0.2", True), ("[::1]", True), ("10.0.0.1", False)],
)
def test_loopback(text: str, expected: bool) -> None:
    assert parse_address(text).is_loopback is expected
