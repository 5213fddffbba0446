from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.client.job_server import JobServer

CERTIFICATES = Path(__file__).parent / "certificates"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give each test an environment without settings of Ray's, and a home of its own."""
    for name in list(os.environ):
        if name.startswith("RAY_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return home


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def tls_server() -> Iterator[JobServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    server = JobServer()
    server.start(context)
    yield server
    server.close()
