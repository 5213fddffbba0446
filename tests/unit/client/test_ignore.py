from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_jobs.client.ignore import default_excludes, ignore_file_names, scan, size_text
from ray_jobs.errors import InvalidRuntimeEnv

BOTH = [".gitignore", ".rayignore"]


def make(root: Path, *names: str, **contents: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text("x")
    return root


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names(root: Path, excludes: list[str] | None = None, files: list[str] = BOTH) -> list[str]:
    return [entry.name for entry in scan(root, excludes or [], files)]


def test_sorted_with_empty_directories(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/2", "a/1", "empty/", "full/x")
    assert names(tmp_path) == ["a/1", "a/2", "b.txt", "empty", "full/x"]


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("*.log", ["a.txt", "sub/a.txt", "sub/build/x", "build/x"]),
        ("/a.txt", ["a.log", "build/x", "sub/a.log", "sub/a.txt", "sub/build/x"]),
        ("build/", ["a.log", "a.txt", "sub/a.log", "sub/a.txt"]),
        ("/build", ["a.log", "a.txt", "sub/a.log", "sub/a.txt", "sub/build/x"]),
        ("sub/**", ["a.log", "a.txt", "build/x"]),
        ("*.txt\n!/a.txt", ["a.log", "a.txt", "build/x", "sub/a.log", "sub/build/x"]),
        ("# a comment\n\n*.log\n*.txt", ["build/x", "sub/build/x"]),
        # As Ray has it, and other than git: within what `build/` ignores, a file can survive.
        ("*.txt\n!sub", ["a.log", "build/x", "sub/a.log", "sub/build/x"]),
        ("build/\n!build/x", ["a.log", "a.txt", "build/x", "sub/a.log", "sub/a.txt"]),
    ],
)
def test_rules(tmp_path: Path, rules: str, kept: list[str]) -> None:
    make(tmp_path, "a.txt", "a.log", "build/x", "sub/a.txt", "sub/a.log", "sub/build/x")
    expected = sorted(kept)
    assert names(tmp_path, rules.splitlines()) == expected
    write(tmp_path, ".rayignore", rules)
    assert names(tmp_path) == sorted([".rayignore", *expected])


def test_nested_rules_hold_for_their_directory(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "sub/a.txt", "sub/deep/a.txt", "sub/b.txt", "other/a.txt")
    write(tmp_path, "sub/.gitignore", "/a.txt\ndeep/a.txt")
    assert names(tmp_path) == ["a.txt", "other/a.txt", "sub/.gitignore", "sub/b.txt"]


def test_an_exception_in_one_file_does_not_undo_another(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "b.txt")
    write(tmp_path, ".gitignore", "*.txt")
    write(tmp_path, ".rayignore", "!a.txt")
    assert names(tmp_path) == [".gitignore", ".rayignore"]


def test_directory_that_ignores_itself(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "cache/x", "cache/y/z")
    write(tmp_path, "cache/.gitignore", "*")
    assert names(tmp_path) == ["a.txt"]


def test_gitignore_can_be_switched_off(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    write(tmp_path, ".gitignore", "*.txt")
    files = ignore_file_names({"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1"})
    assert names(tmp_path, files=files) == [".gitignore", "a.txt"]
    assert ignore_file_names({}) == BOTH


def test_default_excludes(tmp_path: Path) -> None:
    make(tmp_path, "a.py", ".git/x", "sub/__pycache__/y", ".venv/z", "venv/z")
    assert names(tmp_path, default_excludes({})) == ["a.py"]
    override = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
    assert default_excludes({override: ""}) == []
    assert default_excludes({override: " a , b"}) == ["a", "b"]


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "real/a.txt")
    make(tmp_path / "outside", "b.txt")
    (root / "link").symlink_to(root / "real")
    (root / "file").symlink_to(tmp_path / "outside" / "b.txt")
    (root / "nowhere").symlink_to(root / "missing")
    (root / "loop").symlink_to(root)
    (root / "real" / "up").symlink_to("..")
    assert names(root) == ["file", "link/a.txt", "real/a.txt"]


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == ["a.txt"]


def test_executable_bit(tmp_path: Path) -> None:
    make(tmp_path, "run", "data")
    (tmp_path / "run").chmod(0o744)
    assert {e.name: e.is_executable for e in scan(tmp_path, [], [])} == {"run": True, "data": False}


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidRuntimeEnv, match="can't be read"):
        scan(tmp_path / "missing", [], [])


def test_ignore_file_of_any_bytes(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / ".rayignore").write_bytes(b"\xff\xfe\n*.txt\n")
    assert names(tmp_path) == [".rayignore"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (100 << 20, "100.0 MiB"),
        (5 << 30, "5.0 GiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text
