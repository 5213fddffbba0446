"""A server that demands a token: without it nothing is answered, whatever is sent in its place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.raw import request
from tests.fuzz.server import DONE, RUNNING, TOKEN, Server, running_server
from tests.fuzz.tails import begin

PATHS = [
    ("GET", "/api/jobs/"),
    ("HEAD", "/api/jobs/"),
    ("OPTIONS", "/api/jobs/"),
    ("POST", "/api/jobs/"),
    ("DELETE", f"/api/jobs/{DONE}"),
    ("GET", f"/api/ray_jobs/v1/jobs/{DONE}/logs"),
    ("GET", f"/api/jobs/{RUNNING}/logs/tail"),
    ("GET", "/nothing"),
]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("locked"), demands_token=True) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer"}, 403),
        ({"Authorization": TOKEN}, 403),
        ({"Authorization": f"Basic {TOKEN}"}, 403),
        ({"Authorization": f"Bearer {TOKEN}x"}, 403),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 403),
        ({"Authorization": "Bearer \xff\xfe"}, 403),
        ({"Authorization": "\xff"}, 403),
        ({"Authorization": "Bearer " + "x" * 7000}, 403),
        ({"Authorization": "Bearer a.b.c"}, 403),
        ({"X-Ray-Authorization": "Bearer \x80"}, 403),
        ({"Cookie": "ray-authentication-token=\xff"}, 403),
        ({"Cookie": "ray-authentication-token"}, 401),
    ],
)
def test_what_is_no_token(locked: Server, headers: dict[str, str], status: int) -> None:
    for method, path in PATHS:
        answer = request(locked.port, method, path, headers)
        assert answer.status == status, (method, path, answer)
    assert "Traceback" not in locked.said()


@pytest.mark.parametrize("name", ["Authorization", "X-Ray-Authorization"])
def test_the_token(locked: Server, name: str) -> None:
    answer = request(locked.port, "GET", "/api/jobs/", {name: f"Bearer {TOKEN}"})
    assert answer.status == 200, answer
    assert DONE in answer.text


async def test_tails(locked: Server) -> None:
    path = f"/api/jobs/{RUNNING}/logs/tail"
    for headers, status in (("", 401), (f"Authorization: Bearer {TOKEN}\r\n", 101)):
        tail = await begin(locked.port, path, headers)
        assert await tail.status() == status
        tail.close()
