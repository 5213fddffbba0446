"""Secrets are taken out of texts."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from ray_jobs.scrubbing import (
    MAX_WORK,
    PLACEHOLDER,
    Scrubber,
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
        ("https://h/?author=me", "https://h/?author=me"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host:8265/path?page=2", "https://host:8265/path?page=2"),
        ("gcs://_ray_pkg_abc.zip", "gcs://_ray_pkg_abc.zip"),
        ("mail alice@example.com", "mail alice@example.com"),
        ("the bearer of this", "the bearer of this"),
        ("", ""),
    ],
)
def test_texts(text: str, expected: str | None) -> None:
    found = scrubbed(text)
    assert "secret" not in found
    if expected is not None:
        assert found == expected
    else:
        assert PLACEHOLDER in found


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
    ):
        found = scrubbed(text, [value])
        assert PLACEHOLDER in found, text
        assert len(found) <= len(text) - len(value) + len(PLACEHOLDER)


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


def test_deep_values_are_cut() -> None:
    deep: Any = "https://u:p@h"
    for _ in range(900):
        deep = [deep]
    assert PLACEHOLDER in str(Scrubber().deep(deep))


@pytest.mark.parametrize(
    "piece",
    [
        *("://", "://a:", "://:", "?token", "&tokentoken", "?", "Bearer ", "://a@", "a"),
        *("authorization: ", "authorization", "authorization:\\ ", "&auth", "&authauthor"),
    ],
)
def test_long_texts_are_no_trap(piece: str) -> None:
    """Whoever submits chooses the text. Were the cost quadratic, this would not end."""
    text = "://" + piece * (512 * 1024 // len(piece))
    assert len(scrubbed(text)) > 0
