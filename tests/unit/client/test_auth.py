from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.client import auth
from ray_jobs.client.async_client import AsyncJobSubmissionClient
from ray_jobs.errors import AuthenticationFailed, InvalidRequest, UnexpectedResponse
from tests.unit.client.job_server import JobServer, job


def write_default_token(home: Path, text: str = "from-home\n") -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(text)


def test_order_of_sources(environment: Path) -> None:
    home = {"HOME": str(environment)}
    assert auth.find_token(home) is None
    write_default_token(environment)
    assert auth.find_token(home) == "from-home"
    named = environment / "token"
    named.write_text("  from-path  \nanother line")
    by_path = {**home, "RAY_AUTH_TOKEN_PATH": str(named)}
    assert auth.find_token(by_path) == "from-path"
    assert auth.find_token({**by_path, "RAY_AUTH_TOKEN": " direct "}) == "direct"
    assert auth.find_token({**by_path, "RAY_AUTH_TOKEN": ""}) == "from-path"


def test_no_token_when_disabled(environment: Path) -> None:
    write_default_token(environment)
    given = {"HOME": str(environment), "RAY_AUTH_MODE": "Disabled", "RAY_AUTH_TOKEN": "x"}
    assert auth.find_token(given) is None


@pytest.mark.parametrize("content", [None, "", "\nsecond line"])
def test_named_file_without_a_token(environment: Path, content: str | None) -> None:
    named = environment / "token"
    if content is not None:
        named.write_text(content)
    with pytest.raises(AuthenticationFailed, match="RAY_AUTH_TOKEN_PATH"):
        auth.find_token({"HOME": str(environment), "RAY_AUTH_TOKEN_PATH": str(named)})


def test_token_that_no_header_can_carry() -> None:
    with pytest.raises(AuthenticationFailed, match="RAY_AUTH_TOKEN"):
        auth.find_token({"RAY_AUTH_TOKEN": "a\nb"})


def test_headers_from_the_environment() -> None:
    assert auth.default_headers({}) == {}
    assert auth.default_headers({"RAY_JOB_HEADERS": '{"X-A": "b", "X-N": 1}'}) == {
        "X-A": "b",
        "X-N": "1",
    }


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[1]",
        '{"a": {"b": 1}}',
        '{"a": null}',
        '{"a": true}',
        '{"a b": "c"}',
        '{"": "c"}',
        '{"a": "b\\r\\nc: d"}',
        '{"a\\n": "b"}',
        '{"a": "\\udcff"}',
    ],
)
def test_malformed_headers_in_the_environment(text: str) -> None:
    with pytest.raises(InvalidRequest, match="RAY_JOB_HEADERS"):
        auth.default_headers({"RAY_JOB_HEADERS": text})


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-A": "b\r\nX-C: d"}, "X-A has a line break"),
        ({"X-A": "\0"}, "control character"),
        ({"X-A": "\udcff"}, "UTF-8"),
        ({"X-A": None}, "X-A must be a string, not NoneType"),
        ({"X-A": {"b": "c"}}, "X-A must be a string, not dict"),
        ({"X-A": b"b"}, "not bytes"),
        ({"X A": "b"}, "'X A' is not the name"),
        ({"Ä": "b"}, "not the name"),
        ({1: "b"}, "not the name"),
        (["X-A"], "must be a dict"),
    ],
)
def test_headers_that_http_can_not_carry(headers: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        AsyncJobSubmissionClient("http://host", headers=headers)


@pytest.mark.parametrize(
    "cookies", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"a": "b; c=d"}, {"a": "\udcff"}, "a=b"]
)
def test_cookies_that_http_can_not_carry(cookies: Any) -> None:
    with pytest.raises(InvalidRequest, match="cookie"):
        AsyncJobSubmissionClient("http://host", cookies=cookies)


async def test_headers_of_all_kinds_arrive(server: JobServer) -> None:
    given: dict[str, Any] = {"X-Text": "a\tb ä", "X-Number": 1.5, "X_!#": ""}
    sent = await sent_headers(server, headers=given)
    assert (sent["X-Text"], sent["X-Number"], sent["X_!#"]) == ("a\tb ä", "1.5", "")


async def sent_headers(
    server: JobServer, address: str = "", headers: dict[str, str] | None = None
) -> dict[str, str]:
    async with AsyncJobSubmissionClient(address or server.url, headers=headers) as client:
        await client.list_jobs()
    return server.headers[-1]


async def test_token_is_sent(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    assert (await sent_headers(server))["Authorization"] == "Bearer t"


async def test_token_gives_way_to_other_credentials(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    sent = await sent_headers(server, headers={"authorization": "Basic abc"})
    assert sent["Authorization"] == "Basic abc"
    assert sent["X-Ray-Authorization"] == "Bearer t"
    sent = await sent_headers(server, f"http://user:pw@127.0.0.1:{server.port}")
    assert sent["Authorization"].startswith("Basic ")
    assert sent["X-Ray-Authorization"] == "Bearer t"


async def test_token_of_a_websocket(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    server.answer("GET", "/api/ray_jobs/v1/jobs/a/logs/tail", 401, "Unauthorized: Missing")
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(AuthenticationFailed):
            [chunk async for chunk in client.tail_job_logs("a")]
    assert server.headers[1]["Authorization"] == "Bearer t"
    assert server.headers[1]["Upgrade"] == "websocket"


async def test_headers_of_the_environment_give_way(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Team": "a"}')
    assert (await sent_headers(server))["X-Team"] == "a"
    assert "X-Team" not in await sent_headers(server, headers={"X-Other": "b"})


async def test_a_netrc_file_is_left_alone(
    server: JobServer, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    (environment / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    assert (await sent_headers(server))["Authorization"] == "Bearer t"


@pytest.fixture
def other() -> Iterator[JobServer]:
    """A server for which no credentials are meant."""
    other = JobServer()
    other.start()
    yield other
    other.close()


async def test_credentials_stay_on_their_server(
    server: JobServer, other: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    server.answer("GET", "/api/jobs/", 302, Location=f"{other.url}/api/jobs/?secret=1")
    async with AsyncJobSubmissionClient(server.url) as client:
        with pytest.raises(Exception, match="redirects to") as caught:
            await client.list_jobs()
    assert other.requests == []
    assert "secret" not in str(caught.value)


async def test_credentials_of_a_followed_log_stay_on_their_server(
    server: JobServer, other: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a proxy has the login, the token goes by a header that aiohttp doesn't know."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    server.jobs["job1"] = job()
    for path in ("/api/jobs/job1/logs/tail", "/api/ray_jobs/v1/jobs/job1/logs/tail"):
        server.answer("GET", path, 302, Location=f"{other.url}{path}?secret=1")
    async with AsyncJobSubmissionClient(server.url.replace("://", "://user:pw@")) as client:
        with pytest.raises(UnexpectedResponse, match="redirects to") as caught:
            async for _ in client.tail_job_logs("job1"):
                pass
    assert any(each.get("X-Ray-Authorization") == "Bearer t" for each in server.headers)
    assert other.requests == []
    assert "secret" not in str(caught.value)


async def test_redirects_on_the_same_server_are_followed(server: JobServer) -> None:
    server.answer("GET", "/api/jobs/", 307, Location="/api/version")
    server.answer("GET", "/api/version", 200, "[]")
    async with AsyncJobSubmissionClient(server.url) as client:
        assert await client.list_jobs() == {}
