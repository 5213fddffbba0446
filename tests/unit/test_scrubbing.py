"""Secrets are taken out of texts."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from ray_jobs.credentials import PLACEHOLDER, without_credentials
from ray_jobs.models import JobInfo, JobStatus, JobType
from ray_jobs.scrubbing import (
    MAX_WORK,
    Scrubber,
    redact,
    scrubbed,
    scrubbed_runtime_env,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://alice:secret@host/a", "https://<redacted>@host/a"),
        ("git+https://ghp_secret@github.com/a.git", "git+https://<redacted>@github.com/a.git"),
        ("https://alice:se@cr?e#t@host/a b@c", "https://<redacted>@host/a b@c"),
        ("x --index-url=https://u:secret@pypi/simple y", None),
        ("redis://:secret@cache:6379/0", None),
        ('"https://u:secret@host"', '"https://<redacted>@host"'),
        ("s3://bucket/x?X-Amz-Signature=secret&a=1", None),
        ("https://h/?access_token=secret#x", "https://h/?access_token=<redacted>#x"),
        ("https://h/?a=1&SIG=secret", None),
        ("curl -H 'Authorization: Bearer secretsecret' https://h", None),
        ("curl -H 'Authorization: token secret' https://h", None),
        ("curl -H Authorization:\\ secret https://h", None),
        ('curl -H "X-Ray-Authorization: secret" https://h', None),
        ("'Authorization: Digest a=1, response=secret' x", "'Authorization: <redacted>' x"),
        ("""python -c 'get(headers={"authorization": f"token secret"})'""", None),
        (r'{"a": "{\"Authorization\": \"token secret\"}"}', None),
        ("AUTHORIZATION: secret\nnext line", "AUTHORIZATION: <redacted>\nnext line"),
        ("Basic c2VjcmV0OnNlY3JldA==", "Basic <redacted>"),
        ("https://h/?pass=secret&b=1", "https://h/?pass=<redacted>&b=1"),
        ("https://h/?a=1&pwd=secret", None),
        ("https://h/?auth=secret", None),
        ("https://h/?jwt=secret", None),
        # Quotes within the quotes of a header.
        (
            """curl -H 'Authorization: Token token="secret"' https://h""",
            "curl -H 'Authorization: <redacted>' https://h",
        ),
        (
            """curl -H "Authorization: Token token='secret'" https://h""",
            'curl -H "Authorization: <redacted>" https://h',
        ),
        (
            r"""-H "Authorization: Digest a=\"b\", response=\"secret\"" x""",
            '-H "Authorization: <redacted>" x',
        ),
        (
            """-H 'Authorization: OAuth realm="x",oauth_token="secret"' -d 'x'""",
            "-H 'Authorization: <redacted>' -d 'x'",
        ),
        (
            r"""{"a": "curl -H \"Authorization: Token token='secret'\" x"}""",
            r"""{"a": "curl -H \"Authorization: <redacted>\" x"}""",
        ),
        (
            r"""{"a": "{\"authorization\": \"OAuth a=\\\"secret\\\"\", \"b\": 1}"}""",
            r"""{"a": "{\"authorization\": \"<redacted>\", \"b\": 1}"}""",
        ),
        (
            """{'Authorization': 'Token token="secret"', 'b': 1}""",
            "{'Authorization': '<redacted>', 'b': 1}",
        ),
        ("""-H 'Authorization: Token a'\\''secret' x""", None),
        ("""-H 'Authorization: Token 'secret x""", None),
        (
            'Authorization: Digest username="a", response="secret"\nHost: b',
            "Authorization: <redacted>\nHost: b",
        ),
        ('Authorization: Token token="secret"', "Authorization: <redacted>"),
        ('{"HTTP_AUTHORIZATION": "Custom secret"}', '{"HTTP_AUTHORIZATION": "<redacted>"}'),
        (
            """h["Authorization"] = 'Token token="secret"'; x""",
            """h["Authorization"] = '<redacted>'; x""",
        ),
        ("Authorization: ", "Authorization: "),
        # URLs as JSON writes them.
        (r"https:\/\/user:secret@h\/?token=secret", r"https:\/\/<redacted>@h\/?token=<redacted>"),
        (r"https:\\/\\/secret@h\\/", r"https:\\/\\/<redacted>@h\\/"),
        (
            r"https://h/?a=1\u0026token=sec\/secret\u0026b=1",
            r"https://h/?a=1\u0026token=<redacted>\u0026b=1",
        ),
        ("https://h/?a=1&amp;token=secret&amp;b=1", "https://h/?a=1&amp;token=<redacted>&amp;b=1"),
        (r"https://u:a\u0027secret@h", r"https://<redacted>@h"),
        # What a password may hold, or shouldn't but does.
        ("https://user:pa'secret@host/a", "https://<redacted>@host/a"),
        ("https://user:'-secret@host/a", "https://<redacted>@host/a"),
        ("s3://AK:SE/secret@bucket/a", "s3://<redacted>@bucket/a"),
        ("s3://AK:SE/se/b@secret@bucket/a@b", "s3://<redacted>@bucket/a@b"),
        (r"s3:\/\/AK:SE\/secret@bucket", r"s3:\/\/<redacted>@bucket"),
        ("https://h/a://u:secret@h", None),
        ("https://u:secret@h/simple/a@1.0", "https://<redacted>@h/simple/a@1.0"),
        ("https://h/?password[]=secret", "https://h/?password[]=<redacted>"),
        ("https://h/?password%5B%5D=secret", "https://h/?password%5B%5D=<redacted>"),
        ("https://h/#access_token=secret&a=b", "https://h/#access_token=<redacted>&a=b"),
        ("https://h/?token=a'secret", "https://h/?token=<redacted>"),
        ("https://h/?author=me", "https://h/?author=me"),
        ("https://h/?token=&b=1", "https://h/?token=&b=1"),
        (
            "https://h/?next=http://g?token=Bearer sk-secretsecret",
            "https://h/?next=http://g?token=<redacted> <redacted>",
        ),
        ("redis://h:6379?password=p@secret", "redis://<redacted>"),
        # A URL within a parameter.
        (
            "https://h/?next=http://u:secret@g?a=1?token=secret&b=1",
            "https://h/?next=http://<redacted>@g?a=1?token=<redacted>&b=1",
        ),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host:8265/path?page=2", "https://host:8265/path?page=2"),
        ("gcs://_ray_pkg_abc.zip", "gcs://_ray_pkg_abc.zip"),
    ],
)
def test_texts(text: str, expected: str | None) -> None:
    found = scrubbed(text)
    assert "secret" not in found
    if expected is not None:
        assert found == expected
    else:
        assert PLACEHOLDER in found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mail alice@example.com",
        "the bearer of this",
        "curl https://host:8265/a alice@example.com",
        "f('https://host:8265','alice@example.com')",
        "{'u':'https://host:8265/a','mail':'a@b'}",
        '{"u":"https://host:80","mail":"a@b"}',
        r'{"a": "{\"u\":\"https://host:80\",\"mail\":\"a@b\"}"}',
        "https://host:8265/users/alice@example.com",
        r"https:\/\/host:8265\/users\/alice@example.com",
        "http://$HOST:$PORT/users/a@b http://{host}:{port}/a@b http://%s:%d/a@b",
        "http://[::1]:8265/a@b and http://[::1]:8265?x=a@b",
        "mongodb://h1:27017,h2:27017/db@x",
        "docker://host:5000/image@sha256:0123",
        "https://github.com/a/b@v1.2:c",
        "file:///home/me/a:b@c",
        "https://host/?page[size]=2&sort=a#top=1",
        "wget https://host/x && key=3; echo $key",
        "https://h/?a=token&b=key",
        "a:\\\\b@c",
        "authorization is needed",
        "--authorization-mode=RBAC authorization=none",
    ],
)
def test_ordinary_texts_stay(text: str) -> None:
    assert scrubbed(text) == text


def test_values() -> None:
    assert scrubbed("a s3cretvalue b", ["s3cretvalue"]) == "a <redacted> b"
    # The longest first, so that nothing of it is left.
    assert scrubbed("abcdefgh", ["abcdef", "abcdefgh"]) == PLACEHOLDER
    # Short ones are in half of all words.
    assert scrubbed("1 true on", ["1", "true", "on", ""]) == "1 true on"


def test_values_that_overlap() -> None:
    assert scrubbed("x abcdefghi y", ["abcdef", "defghi"]) == "x <redacted> y"
    # Nothing is found in the placeholder itself.
    assert scrubbed("s3cret redacted", ["redacted", "s3cret"]) == "<redacted> <redacted>"


@pytest.mark.parametrize(
    "value", ['pa"ss word', "it's me", "a\\b\\c\\d", "two\nlines", "pässwörd", "a b&c$d"]
)
def test_values_as_they_are_written(value: str) -> None:
    """A secret is found in quotes as well."""
    for text in (
        value,
        json.dumps({"KEY": value}),
        json.dumps({"KEY": value}, ensure_ascii=False),
        repr({"KEY": value}),
        f"true {shlex.quote(value)}",
        "true '" + value.replace("'", "'\\''") + "'",
        'true "' + re.sub(r'(["\\$`])', r"\\\1", value) + '"',
        f"https://h/{quote(value, safe='')}",
        f"https://h/?x={quote_plus(value)}",
        f"https://h/{in_small_letters(quote(value, safe=''))}",
        f"https://h/?x={in_small_letters(quote_plus(value))}",
    ):
        found = scrubbed(text, [value])
        assert PLACEHOLDER in found, text
        assert len(found) <= len(text) - len(value) + len(PLACEHOLDER)


def in_small_letters(quoted: str) -> str:
    return re.sub("%..", lambda found: found[0].lower(), quoted)


@pytest.mark.parametrize("value", ["s3cretvalue\n", "s3cret/value\r\n", " s3cret value\n\n"])
def test_a_final_line_break_is_not_waited_for(value: str) -> None:
    """A file's content has one, `$(cat file)` hasn't."""
    for text in (value.strip(), repr(value), json.dumps(value), quote(value), value):
        found = scrubbed(f"a {text} b", [value])
        assert "s3cret" not in found
        assert "value" not in found


def test_many_values_in_many_texts() -> None:
    """Whoever submits chooses how many. Were the cost their product, this would take minutes."""
    values = {f"NAME_{number}": f"value-{number:05}" for number in range(10_000)}
    texts = [f"no secret {number}" for number in range(1_500)]
    env = {"env_vars": values, "pip": [*texts, "x value-00077 y"]}
    found = scrubbed_runtime_env(env)
    assert found == {
        "env_vars": dict.fromkeys(values, PLACEHOLDER),
        "pip": [*texts, "x <redacted> y"],
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([f"{'a' * 6}{number}" for number in range(10_000)], "a" * 20_000),
        ([f"{number:06}" for number in range(10_000)], "".join(map("{:06}".format, range(5_000)))),
        (["a" * 6], "a" * (MAX_WORK // 20)),
    ],
)
def test_what_costs_too_much_is_taken_out_whole(values: list[str], text: str) -> None:
    scrubber = Scrubber(values)
    assert scrubber.text(text) == PLACEHOLDER
    assert scrubber.text("what is left too") == PLACEHOLDER


def test_runtime_env() -> None:
    env: dict[str, Any] = {
        "env_vars": {"A": "s3cretvalue", "B": "1"},
        "pip": {
            "packages": ["git+https://tok@host/a", "x==1"],
            "pip_install_options": ["--extra-index-url=https://u:p@host/"],
        },
        "working_dir": "https://u:p@host/a.zip",
        "config": {"setup_timeout_seconds": 5, "note": "has s3cretvalue"},
    }
    copy = Scrubber().deep(env)
    assert scrubbed_runtime_env(env) == {
        "env_vars": {"A": PLACEHOLDER, "B": PLACEHOLDER},
        "pip": {
            "packages": ["git+https://<redacted>@host/a", "x==1"],
            "pip_install_options": ["--extra-index-url=https://<redacted>@host/"],
        },
        "working_dir": "https://<redacted>@host/a.zip",
        "config": {"setup_timeout_seconds": 5, "note": "has <redacted>"},
    }
    assert env["env_vars"] == {"A": "s3cretvalue", "B": "1"}
    assert copy is not env
    assert scrubbed_runtime_env(None) is None
    assert scrubbed_runtime_env({"env_vars": ["odd"]}) == {"env_vars": ["odd"]}


def test_keys() -> None:
    env = {
        "env_vars": {"https://u:pw@h": "s3cretvalue", "NAME": "working_dir"},
        "https://u:pw@h/x": 1,
        "working_dir": "gcs://a.zip",
        "config": {"https://u:pw@h/x": {"s3cretvalue": 1}},
    }
    assert scrubbed_runtime_env(env) == {
        "env_vars": {"https://<redacted>@h": PLACEHOLDER, "NAME": PLACEHOLDER},
        "https://<redacted>@h/x": 1,
        "working_dir": "gcs://a.zip",
        "config": {"https://<redacted>@h/x": {PLACEHOLDER: 1}},
    }
    info = JobInfo(
        type=JobType.SUBMISSION,
        status=JobStatus.PENDING,
        entrypoint="true",
        runtime_env={"env_vars": {"A": "s3cretvalue"}},
        metadata={"https://u:pw@h/x": "v", "s3cretvalue": "w"},
    )
    redact(info)
    assert info.metadata == {"https://<redacted>@h/x": "v", PLACEHOLDER: "w"}


def test_deep_values_are_cut() -> None:
    deep: Any = "https://u:p@h"
    for _ in range(900):
        deep = [deep]
    assert PLACEHOLDER in str(Scrubber().deep(deep))


TRAPS = (
    *("://", "://a:", "://:", "?token", "&tokentoken", "?", "Bearer ", "://a@", "a", "\\", "&a=1"),
    *("authorization: ", "authorization", "authorization:\\ ", "&auth", "&authauthor", "'", '\\"'),
    *(
        "://a:b/c",
        "://a:b'c",
        ":\\/\\/a:",
        "\\u0026",
        "'authorization:\n",
        "&key=",
        "Basic aaaaaaaa ",
    ),
    *('"authorization":"x"x', "://a:1/b'c", "&" + "key" * 30, "://u:p@h "),
)


@pytest.mark.parametrize("piece", TRAPS)
def test_long_texts_are_no_trap(piece: str) -> None:
    """Whoever submits chooses the text. Were the cost quadratic, this would not end."""
    text = "://@=authorization:bearer" + piece * (512 * 1024 // len(piece))
    assert len(without_credentials(text)) > 0


@pytest.mark.parametrize(
    "piece",
    [
        *("://", "://a@", "?", "&a=1", "://u:p@h ", ":\\/\\/a:", "\\u0026a=", "basic "),
        *("authorization:\n", "'Authorization: x' ", '"authorization":"x"x'),
    ],
)
def test_a_text_that_is_made_to_cost_much_is_taken_out_whole(piece: str) -> None:
    """Of the length that a job may have; each place costs up to some us."""
    text = "://" + piece * (128 * 1024 // len(piece))
    assert scrubbed(text) == PLACEHOLDER
    assert scrubbed(text[:10_000]) != PLACEHOLDER


@pytest.mark.parametrize(
    "line",
    [
        "model.fit(x=1, y='a')  # see https://host/docs?page=2\nprint('done', a & b)\n",
        '{"path": "/a/b/c/d", "token": 3},\n',
        "2026-11-28 19:00:00 INFO worker-17 loss=0.3 lr=0.1 step=100 of basic training\n",
    ],
)
def test_a_text_as_long_as_can_be_is_no_such(line: str) -> None:
    text = "https://u:secret@h\n" + line * (128 * 1024 // len(line))
    assert scrubbed(text) == text.replace("u:secret", PLACEHOLDER).replace(
        "basic training", f"basic {PLACEHOLDER}"
    )


def test_many_values_with_many_forms_are_not_all_written() -> None:
    scrubber = Scrubber(f"a/'{number:06}" for number in range(10_000))
    assert len(scrubber._values) < 10_000
    assert scrubber.text("a/'000001") == scrubber.text("true") == PLACEHOLDER
    # As many as anybody has are no such case.
    scrubber = Scrubber(f"/a path/{number:06}/" + "b" * 50 for number in range(200))
    assert scrubber.text("x /a path/000123/" + "b" * 50) == "x <redacted>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("password", "postgresql://db/prod?user=u&password=hunter2hunter2"),
        ("postgresql://", "--db postgresql://user:hunter2@db/prod"),
        ("db/prod?user=u", "postgresql://db/prod?user=u&password=hunter2hunter2"),
        ("Authorization", "-H 'Authorization: ApiKey hunter2hunter2'"),
        ("Bearer", "'Bearer sk-hunter2hunter2'"),
        ("secret@db", "postgresql://user:hunter2secret@db/prod"),
        # What ends with a letter, or holds a line's end or a quote.
        ("user_token", "failed with user_tokenBearer hunter2hunter2"),
        ("line1\nline2", "Authorization: Sig line1\nline2, s=hunter2hunter2"),
        ("it's me now", "-H 'Authorization: Sig k=it's me now, sig=hunter2hunter2'"),
    ],
)
def test_values_beside_or_within_credentials(value: str, text: str) -> None:
    found = scrubbed(text, [value])
    assert "hunter2" not in found
    assert value not in found
