"""Secrets are taken out of texts."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.scrubbing import (
    PLACEHOLDER,
    scrubbed,
    scrubbed_deep,
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
        ("Basic c2VjcmV0OnNlY3JldA==", "Basic <redacted>"),
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
    copy = scrubbed_deep(env)
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
    assert PLACEHOLDER in str(scrubbed_deep(deep))


@pytest.mark.parametrize(
    "piece", ["://", "://a:", "://:", "?token", "&tokentoken", "?", "Bearer ", "://a@", "a"]
)
def test_long_texts_are_no_trap(piece: str) -> None:
    """Whoever submits chooses the text. Were the cost quadratic, this would not end."""
    text = "://" + piece * (512 * 1024 // len(piece))
    assert len(scrubbed(text)) > 0
