"""Which files of a directory belong into its package.

The rules are Ray's: `.gitignore` and `.rayignore` files hold for the directory that they are in and
for all below it, none takes back what another one ignores, and symbolic links are followed.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.errors import InvalidRuntimeEnv

logger = logging.getLogger("ray_jobs")

DEFAULT_EXCLUDES = (".git", ".venv", "venv", "__pycache__")
#: From this size on a file is mentioned in the log: it may be there by mistake.
LARGE_FILE_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """A file of a package, or an empty directory."""

    name: str  #: Relative to the package's root, with slashes.
    path: str  #: On this machine.
    size: int  #: bytes; 0 for a directory
    is_directory: bool = False
    is_executable: bool = False


class _Rules:
    """The rules of one ignore file, or the `excludes`, for all below a directory."""

    def __init__(self, base: str, lines: Iterable[str]) -> None:
        import pathspec
        from pathspec.pattern import RegexPattern

        self._base = base
        #: In order: whether it ignores (or keeps), and what.
        self._patterns: list[tuple[bool, re.Pattern[str]]] = []
        for pattern in pathspec.PathSpec.from_lines(_pattern_style(), lines).patterns:
            if not isinstance(pattern, RegexPattern) or pattern.regex is None:
                continue  # a comment
            regex = pattern.regex
            if not pattern.include:
                regex = _without_descendants(regex.pattern)
            self._patterns.append((bool(pattern.include), regex))
        self._has_exceptions = not all(ignores for ignores, _ in self._patterns)

    def ignores(self, name: str, *, is_directory: bool) -> bool:
        """Return whether a path (relative to the package's root) is ignored."""
        relative = (name[len(self._base) + 1 :] if self._base else name) or "."
        if self._last_word(relative):
            return True
        # `build/` names what is in it, for Ray. Where nothing in it can survive, it needn't be
        # looked at file by file.
        return is_directory and not self._has_exceptions and self._last_word(relative + "/")

    def _last_word(self, path: str) -> bool:
        ignored = False
        for ignores, regex in self._patterns:
            if ignored is not ignores and regex.search(path):
                ignored = ignores
        return ignored


#: How pathspec's expressions go on from a name to what is below it, in its several versions.
_DESCENDANTS = re.compile(r"\(\?:(?:\(\?P<ps_d>/\)|/)(?:\.\*\)\?\$|\|\$\))$")


def _without_descendants(expression: str) -> re.Pattern[str]:
    """Return the expression of an exception: `!keep` keeps that alone, not what is below it."""
    return re.compile(_DESCENDANTS.sub("$", expression))


@functools.cache
def _pattern_style() -> str:
    """Return pathspec's name for the patterns of .gitignore: version 1 gave them a new one."""
    if importlib.util.find_spec("pathspec.patterns.gitignore") is not None:
        return "gitignore"
    return "gitwildmatch"


def default_excludes(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return what is never packed, unless RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES says so."""
    environment = os.environ if environment is None else environment
    override = environment.get("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES")
    if override is None:
        return list(DEFAULT_EXCLUDES)
    return [one.strip() for one in override.split(",") if one.strip()]


def ignore_file_names(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the files that hold ignore rules."""
    environment = os.environ if environment is None else environment
    if environment.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1":
        return [".rayignore"]
    return [".gitignore", ".rayignore"]


def scan(root: Path, excludes: Iterable[str], ignore_files: Iterable[str]) -> list[Entry]:
    """Return the files of a directory that belong into its package, sorted by name.

    Sockets, pipes, devices and links to nowhere are left out.

    Raises:
        InvalidRuntimeEnv: a directory or an ignore file can't be read.
    """
    walk = _Walk(list(ignore_files))
    try:
        entries = list(walk.directory(str(root), "", [_Rules("", excludes)], ()))
    except OSError as error:
        raise InvalidRuntimeEnv(
            f"{error.filename or root} can't be read: {error.strerror}.",
            hint="Name it in `excludes` or in a .rayignore file if the job doesn't need it.",
        ) from error
    entries.sort(key=lambda entry: entry.name)
    for entry in entries:
        if entry.size >= LARGE_FILE_BYTES:
            logger.info("%s is large: %s.", entry.path, size_text(entry.size))
    return entries


class _Walk:
    def __init__(self, ignore_files: list[str]) -> None:
        self._ignore_files = ignore_files

    def directory(
        self, path: str, name: str, rules: list[_Rules], above: tuple[tuple[int, int], ...]
    ) -> Iterator[Entry]:
        """Yield what is in a directory and below it."""
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            logger.info("%s links to a directory that it is in: left out.", path)
            return
        above = (*above, identity)
        rules = [*rules, *self._rules_in(path, name)]
        if any(rule.ignores(name, is_directory=False) for rule in rules):
            return  # by an ignore file of its own: tools put a `*` into their caches
        empty = True
        with os.scandir(path) as listing:
            found = sorted(listing, key=lambda item: item.name)
        for item in found:
            empty = False
            child = f"{name}/{item.name}" if name else item.name
            is_directory = item.is_dir()
            if any(rule.ignores(child, is_directory=is_directory) for rule in rules):
                continue
            if is_directory:
                yield from self.directory(item.path, child, rules, above)
            else:
                yield from _file(item, child)
        if empty and name:
            yield Entry(name=name, path=path, size=0, is_directory=True)

    def _rules_in(self, path: str, name: str) -> Iterator[_Rules]:
        for file_name in self._ignore_files:
            file = os.path.join(path, file_name)
            if os.path.isfile(file):
                with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                    yield _Rules(name, lines.read().splitlines())


def _file(item: os.DirEntry[str], name: str) -> Iterator[Entry]:
    try:
        status = item.stat()
    except FileNotFoundError:
        logger.info("%s links to nowhere, or has just vanished: left out.", item.path)
        return
    if not stat.S_ISREG(status.st_mode):
        logger.info("%s is no regular file: left out.", item.path)
        return
    yield Entry(
        name=name,
        path=item.path,
        size=status.st_size,
        is_executable=bool(status.st_mode & 0o111),
    )


def size_text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
