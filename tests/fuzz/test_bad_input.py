"""Requests that are wrong in ways that chance doesn't find: each is answered, none with a 5xx."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.archives import MIB
from tests.fuzz.raw import request, send
from tests.fuzz.server import DONE, RUNNING, Server
from tests.waiting import wait_until

SUBMIT = "/api/jobs/"
OWN = "/api/ray_jobs/v1"
JSON = {"Content-Type": "application/json"}
#: The kernel's limit for one argument, with its final NUL.
MAX_ARG_STRLEN = 128 * 1024
DEEP = b"[" * 200_000


def submission(**fields: Any) -> bytes:
    return json.dumps({"entrypoint": "true", **fields}).encode()


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b" \n", "JSON"),
        (b"\0", "JSON"),
        (b"null", "object"),
        (b"true", "object"),
        (b"[]", "object"),
        (b'"true"', "object"),
        (b"1e400", "JSON"),
        (b"{}", "entrypoint"),
        (b'{"entrypoint": null}', "entrypoint"),
        (b'{"entrypoint": "true"', "JSON"),
        (b'{"entrypoint": "true"} x', "JSON"),
        (b'{"entrypoint": "\xff"}', "JSON|UTF-8"),
        (b'{"entrypoint": "\\ud800"}', "JSON|surrogate"),
        ("\ufeff{}".encode(), "JSON"),
        ('{"entrypoint": "true"}'.encode("utf-16"), "JSON"),
        (DEEP, "JSON|nested"),
        (b'{"entrypoint": "true", "runtime_env": {"conda": ' + DEEP, "JSON|nested"),
        (b'{"entrypoint": "true", "x": ' + b"1" * 5000 + b"}", "JSON|unknown"),
        (b'{"entrypoint": "true", "entrypoint_num_cpus": NaN}', "JSON"),
        (b'{"entrypoint": "true", "entrypoint_num_cpus": Infinity}', "JSON"),
        (b'{"entrypoint": "true", "entrypoint_num_gpus": -1e-300}', "entrypoint_num_gpus"),
        (b'{"entrypoint": "true", "entrypoint_num_gpus": 1e308}', "entrypoint_num_gpus"),
        (
            b'{"entrypoint": "true", "entrypoint_memory": 1' + b"0" * 400 + b"}",
            "entrypoint_memory",
        ),
        (submission(entrypoint_num_cpus=True), "entrypoint_num_cpus"),
        (submission(entrypoint_memory=1.5), "entrypoint_memory"),
        (submission(entrypoint=""), "empty"),
        (submission(entrypoint=" \t\n"), "empty"),
        (submission(entrypoint=["true"]), "entrypoint"),
        (submission(entrypoint="echo a\0b"), "NUL"),
        (submission(entrypoint="x" * MAX_ARG_STRLEN), "131,072 bytes"),
        (submission(entrypoint="é" * (MAX_ARG_STRLEN // 2)), "131,072 bytes"),
        (submission(metadata={"a" * 10_000: 1}), "metadata"),
        (submission(metadata={"a\0": ""}), "NUL"),
        (submission(runtime_env=[]), "runtime_env"),
        (submission(runtime_env={"pip": {"packages": [1]}}), "packages"),
        (submission(runtime_env={"config": {"setup_timeout_seconds": True}}), "setup_timeout"),
        (submission(runtime_env={"env_vars": {"A": True}}), "env_vars"),
        (submission(runtime_env={"conda": {"a": {"b": "\0"}}}), "NUL"),
        (submission(**{"x" * 1_000_000: 1}), "unknown field"),
        (submission(submission_id="a/b"), "slash"),
        (submission(submission_id="../../etc/passwd"), "slash"),
        (submission(submission_id=".."), "URL"),
        (submission(submission_id="\0"), "control"),
        (submission(submission_id="a\r\nSet-Cookie: b"), "control"),
        (submission(submission_id="a" * 10_000), "10000 bytes"),
        (submission(submission_id="\U0001f600" * 51), "204 bytes"),
        (submission(submission_id=5), "submission_id"),
        (submission(submission_id={"$ne": None}), "submission_id"),
    ],
)
def test_submissions_that_are_none(server: Server, body: bytes, word: str) -> None:
    answer = request(server.port, "POST", SUBMIT, JSON, body)
    assert answer.status == 400, answer
    assert any(each in answer.text for each in word.split("|")), answer.text
    assert len(answer.text) < 2000


@pytest.mark.parametrize(
    "submission_id",
    ["a.b", "...", " a b ", "世界-é-\U0001f600", "a?b#c&d=e;f%2F", "~!@$^*()_+", "\\", "'\"<b>"],
)
def test_unusual_ids_work_everywhere(server: Server, submission_id: str) -> None:
    port, path = server.port, f"/api/jobs/{quote(submission_id, safe='')}"
    body = submission(submission_id=submission_id)
    answer = request(port, "POST", SUBMIT, JSON, body)
    assert answer.status == 200, answer
    assert json.loads(answer.body)["submission_id"] == submission_id
    again = request(port, "POST", SUBMIT, JSON, body)
    assert again.status == 500
    assert "Please use a different submission_id" in again.text
    assert json.loads(request(port, "GET", path).body)["submission_id"] == submission_id
    server.append(submission_id, b"its log\n")
    assert json.loads(request(port, "GET", f"{path}/logs").body) == {"logs": "its log\n"}
    own = f"{OWN}/jobs/{quote(submission_id, safe='')}"
    assert request(port, "GET", f"{own}/logs").body == b"its log\n"
    assert json.loads(request(port, "POST", f"{path}/stop").body) == {"stopped": True}
    assert json.loads(request(port, "DELETE", path).body) == {"deleted": True}
    assert request(port, "GET", path).status == 404


@pytest.mark.parametrize(
    "job_id",
    [
        "%00",
        "%ff%fe",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%5c..",
        "%0d%0aSet-Cookie:%20a=b",
        "%ED%A0%80",
        "%",
        "%zz",
        "a" * 7000,
        "ffffffff",
        quote("\u202eevil"),
        "*",
        "%25s%25n",
        "{job_id}",
        "' OR 1=1",
    ],
)
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/stop"),
        ("GET", "/logs"),
        ("GET", "/logs/tail"),
        ("HEAD", "/logs"),
    ],
)
def test_ids_that_no_job_has(server: Server, job_id: str, method: str, rest: str) -> None:
    for prefix in ("/api", OWN):
        if prefix == OWN and method in ("DELETE", "POST"):
            continue
        answer = request(server.port, method, f"{prefix}/jobs/{job_id}{rest}")
        assert answer.status in (400, 404), answer
        assert "Set-Cookie: a=b" not in answer.head


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        (f"{OWN}/jobs?limit=0", (400,)),
        (f"{OWN}/jobs?limit=-1", (400,)),
        (f"{OWN}/jobs?limit=1e3", (400,)),
        (f"{OWN}/jobs?limit=" + "9" * 4000, (400,)),
        (f"{OWN}/jobs?limit=%D9%A1", (400,)),  # a digit, but not of ASCII
        (f"{OWN}/jobs?limit=NaN", (400,)),
        (f"{OWN}/jobs?limit=%ff", (400,)),
        (f"{OWN}/jobs?limit", (400,)),
        (f"{OWN}/jobs?cursor=%00", (400,)),
        (f"{OWN}/jobs?cursor=AAAA", (400,)),
        (f"{OWN}/jobs?cursor=%ff%fe", (400,)),
        (f"{OWN}/jobs?cursor=" + "W" * 7000, (400,)),
        (f"{OWN}/jobs?cursor=Wy0xLCAiIl0", (200,)),  # [-1, ""]: before everything
        (f"{OWN}/jobs?status=", (200,)),
        (f"{OWN}/jobs?status=%ff", (400,)),
        (f"{OWN}/jobs?status=" + "RUNNING," * 800, (200,)),
        (f"{OWN}/jobs?type=x", (400,)),
        (f"{OWN}/jobs?type=" + "x" * 7000, (400,)),
        (f"{SUBMIT}?format=xml", (400,)),
        (f"{SUBMIT}?format=%ff", (400,)),
        (f"{SUBMIT}?format=map&format=xml", (200,)),
        (f"{OWN}/jobs/{RUNNING}/wait?timeout_s=-1", (400,)),
        (f"{OWN}/jobs/{RUNNING}/wait?timeout_s=nan", (400,)),
        (f"{OWN}/jobs/{RUNNING}/wait?timeout_s=-inf", (400,)),
        (f"{OWN}/jobs/{RUNNING}/wait?timeout_s=1_0x", (400,)),
        (f"{OWN}/jobs/{RUNNING}/wait?timeout_s=1e-320", (200,)),
        (f"{OWN}/jobs/{RUNNING}/wait?timeout_s=0&after_revision=" + "9" * 18, (200,)),
        (f"{OWN}/jobs/{RUNNING}/wait?after_revision=-1", (400,)),
        (f"{OWN}/jobs/{DONE}/wait?timeout_s=1e308", (200,)),
        (f"{OWN}/jobs/{RUNNING}/logs/tail?offset=-1", (400,)),
        (f"{OWN}/jobs/{RUNNING}/logs/tail?offset=1.5", (400,)),
        ("//api/version", (404,)),
        ("/api/version/", (404,)),
        ("/api/../api/version", (200, 400, 404)),
        ("/api/jobs/" + "a" * 20_000, (400, 414)),
        ("http://[::1", (400, 404)),
        ("*", (400, 404)),
    ],
)
def test_queries_and_paths(server: Server, path: str, statuses: tuple[int, ...]) -> None:
    answer = request(server.port, "GET", path)
    assert answer.status in statuses, answer


@pytest.mark.parametrize(
    "value",
    [
        "bytes=-",
        "bytes=5-1",
        "bytes=0-1,3-4",
        "bytes=99999999999999999999999-",
        "bytes=-0",
        "bytes=a-b",
        "lines=1-2",
        "bytes=" + "0-1," * 500,
        "\xff",
    ],
)
def test_ranges(server: Server, value: str) -> None:
    answer = request(server.port, "GET", f"{OWN}/jobs/{DONE}/logs", {"Range": value})
    assert answer.status in (200, 206, 400, 416), answer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("If-Modified-Since", "yesterday"),
        ("If-Range", "x"),
        ("If-None-Match", '"' + "x" * 5000),
        ("Accept-Encoding", "gzip;q=x, br, *;q=9e999"),
        ("Accept", "\xff/\xfe"),
        ("Cookie", "a=b; =; \x80"),
        ("Expect", "the impossible"),
        ("Authorization", "Bearer \xff\xfe"),
        ("X-Ray-Authorization", "x" * 8000),
        ("Content-Type", "application/json; charset=klingon"),
        ("Content-Encoding", "snappy"),
        ("Origin", "null"),
        ("X-Forwarded-For", "1.2.3.4," * 500),
        ("X-Forwarded-For", "\xff, 10.0.0.1"),
        ("X-Forwarded-For", "10.0.0.1%\xff"),
        ("Upgrade", "h2c"),
        ("User-Agent", "\xff"),
        ("User-Agent", "x" * 8000),
        ("Referer", "\xff"),
        ("Sec-Fetch-Site", "\xff"),
    ],
)
def test_headers(server: Server, name: str, value: str) -> None:
    for method, path in (("GET", f"{OWN}/jobs/{DONE}/logs"), ("POST", SUBMIT)):
        lines = len(server.audit())
        body = b"" if method == "GET" else b"[]"
        answer = request(server.port, method, path, {name: value}, body)
        assert answer.status in (200, 304, 400, 403, 405, 415, 416, 417), answer
        if method == "POST" and answer.status != 417:  # that is aiohttp's
            wait_for_audit(server, lines + 1)


def wait_for_audit(server: Server, lines: int) -> None:
    wait_until(lambda: len(server.audit()) >= lines, f"{lines} lines of the audit")


@pytest.mark.parametrize("host", ["evil.example", "\xff", "a:b:c", "x" * 8000, "%00", "@"])
def test_names_in_host(server: Server, host: str) -> None:
    head = f"GET {OWN}/server HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = send(server.port, head.encode("latin-1"))
    assert answer.status in (400, 403), answer


@pytest.mark.parametrize(
    ("encoding", "make", "statuses"),
    [
        ("gzip", lambda: b"no gzip", (400,)),
        ("deflate", lambda: b"\xff" * 100, (400,)),
        ("gzip", lambda: gzip.compress(b"[]")[:-4], (400,)),
        ("gzip", lambda: gzip.compress(bytes(200 * MIB)), (400, 413)),
        ("deflate", lambda: zlib.compress(bytes(200 * MIB)), (400, 413)),
    ],
)
def test_compressed_bodies(
    server: Server, encoding: str, make: Callable[[], bytes], statuses: tuple[int, ...]
) -> None:
    before, body = server.rss_bytes(), make()
    for method, path in (("POST", SUBMIT), ("PUT", "/api/packages/gcs/a.zip")):
        answer = request(server.port, method, path, {"Content-Encoding": encoding}, body)
        assert answer.status in statuses, answer
    assert server.rss_bytes() - before < 100 * MIB


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\0" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /api/version HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
        b"GET /api/version HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /api/version HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /api/version HTTP/1.1\r\n" + b"A: b\r\n" * 40_000 + b"\r\n",
        b"POST /api/jobs/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"
        b"\r\n\r\n0\r\n\r\n",
        b"POST /api/jobs/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked"
        b"\r\n\r\nzz\r\n",
        b"POST /api/jobs/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked"
        b"\r\n\r\nffffffffffffffffffff\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # a TLS client
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http(server: Server, data: bytes) -> None:
    answer = send(server.port, data)
    assert answer.status in (0, 400, 404, 405, 505), answer
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "OPTIONS", "CONNECT", "BREW"])
@pytest.mark.parametrize("path", [SUBMIT, f"/api/jobs/{RUNNING}/logs", f"{OWN}/server"])
def test_methods_that_a_route_has_not(server: Server, method: str, path: str) -> None:
    assert request(server.port, method, path).status in (400, 404, 405)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"Upgrade": "websocket"}, 400),
        ({"Upgrade": "websocket", "Connection": "upgrade"}, 400),
        ({"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Version": "1"}, 400),
        (
            {
                "Upgrade": "websocket",
                "Connection": "upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "x",
            },
            400,
        ),
    ],
)
def test_handshakes_that_are_none(server: Server, headers: dict[str, str], status: int) -> None:
    for prefix in ("/api", OWN):
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = [f"GET {prefix}/jobs/{RUNNING}/logs/tail HTTP/1.1", "Host: a", *lines, "", ""]
        answer = send(server.port, "\r\n".join(head).encode())
        assert answer.status == status, answer
