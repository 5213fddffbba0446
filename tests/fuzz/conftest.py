"""A face in a process of its own, which is looked over after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.fuzz.server import Server, running_server

TIMEOUT_S = 30.0


@pytest.fixture(scope="package")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("fuzz"), "--head-timeout-s", "2") as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The server that all tests share; healthy before and after each."""
    yield shared_server
    check_health(shared_server)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def check_health(server: Server) -> None:
    """Fail unless the server answers, and has met nothing that it didn't expect."""
    answer = requests.get(f"{server.url}/api/version", timeout=TIMEOUT_S)
    assert answer.status_code == 200
    said = server.said()
    assert "Traceback" not in said, said[-4000:]
    assert "Incident" not in said, said[-4000:]
