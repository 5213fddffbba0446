"""The fields of a runtime environment that install packages: pip, uv, conda."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray_jobs.errors import InvalidRuntimeEnv


def pip(value: Any) -> dict[str, Any] | None:
    """Return what Ray's client sends for `pip`; None when nothing is to be installed.

    Args:
        value: A list of requirements, the path of a requirements file, or a dict.

    Raises:
        InvalidRuntimeEnv: it is something else.
    """
    return _installer(value, "pip", options="pip_install_options")


def uv(value: Any) -> dict[str, Any] | None:
    """Return what Ray's client sends for `uv`; None when nothing is to be installed.

    Args:
        value: A list of requirements, the path of a requirements file, or a dict.

    Raises:
        InvalidRuntimeEnv: it is something else.
    """
    normalized = _installer(value, "uv", options="uv_pip_install_options")
    if normalized is not None:
        normalized.setdefault("uv_pip_install_options", ["--no-cache"])
    return normalized


def _installer(value: Any, name: str, *, options: str) -> dict[str, Any] | None:
    check, version = f"{name}_check", f"{name}_version"
    given: Mapping[str, Any]
    if isinstance(value, Mapping):
        given = value
    elif isinstance(value, str | os.PathLike | list | tuple):
        given = {"packages": value}
    else:
        raise _wrong(name, "a list of requirements, the path of a requirements file, or a dict")
    unknown = sorted(map(str, set(given) - {"packages", check, version, options}))
    if unknown:
        raise InvalidRuntimeEnv(f"runtime_env.{name} has no field {unknown[0]!r}.")
    if given.get("packages") is None:
        raise InvalidRuntimeEnv(f"runtime_env.{name} has no `packages`.")
    normalized = copy.deepcopy(dict(given))
    packages = given["packages"]
    if isinstance(packages, str | os.PathLike):
        packages = _requirements(Path(packages).expanduser(), name)
    if not _is_texts(packages):
        raise _wrong(f"{name}.packages", "a list of strings")
    # pip refuses a requirement that it is given twice.
    normalized["packages"] = list(dict.fromkeys(packages))
    if not isinstance(given.get(check, False), bool):
        raise _wrong(f"{name}.{check}", "True or False")
    normalized.setdefault(check, False)
    if not isinstance(given.get(version, ""), str):
        raise _wrong(f"{name}.{version}", "a string")
    if not _is_texts(given.get(options, [])):
        raise _wrong(f"{name}.{options}", "a list of strings")
    return normalized if normalized["packages"] else None


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _wrong(name: str, wanted: str) -> InvalidRuntimeEnv:
    return InvalidRuntimeEnv(f"runtime_env.{name} must be {wanted}.")


def _requirements(path: Path, name: str) -> list[str]:
    """Return the lines of a requirements file; the cluster's installer makes sense of them.

    Files that it includes by `-r` are put in that place: the cluster doesn't have them.
    """
    return list(_lines(path, name, ()))


def _lines(path: Path, name: str, above: tuple[Path, ...]) -> Iterable[str]:
    path = path.resolve()
    if path in above:
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRuntimeEnv(f"runtime_env.{name}: {path} can't be read: {reason}.") from None
    for line in text.replace("\\\n", " ").strip().splitlines():
        included = _included(line)
        if included is None:
            _check_not_here(line, path, name)
            yield line
        else:
            yield from _lines(path.parent / included, name, (*above, path))


def _included(line: str) -> str | None:
    """Return the local file that a line of a requirements file includes, if it does."""
    for flag in ("--requirement", "-r"):
        if line.startswith(flag):
            rest = line[len(flag) :].split(" #", 1)[0].strip(" =\t")
            return rest if rest and "://" not in rest and "${" not in rest else None
    return None


#: What names a file by its place beside the requirements file: a constraints file, an editable
#: project, a project or wheel. Absolute paths and `${...}` are for the nodes to find.
_LOCAL = re.compile(
    r"(?:--constraint|-c|--editable|-e)[ =\t]*(?!\S*://)[^\s=/~$]"
    r"|\.{1,2}(?:/|\[|\s|$)"
)


def _check_not_here(line: str, path: Path, name: str) -> None:
    if _LOCAL.match(line.strip()):
        raise InvalidRuntimeEnv(
            f"runtime_env.{name}: {path} has the line {line.strip()!r}, which names a file of this "
            "machine; the cluster doesn't have it.",
            hint="Put it into the working_dir, and name it in the requirements as "
            "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/..., or give a URL. A project's code can go "
            "into py_modules.",
        )


def conda(value: Any) -> str | dict[str, Any]:
    """Return what Ray's client sends for `conda`: a name, or the content of an environment file.

    Args:
        value: The name of an environment (or its directory) on the cluster, the path of an
            environment file (`.yaml`, `.yml`), or a dict like one.

    Raises:
        InvalidRuntimeEnv: it is something else, or the file can't be read.
    """
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value))
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise _wrong("conda", "a name, the path of an environment file, or a dict")
    text = str(value)
    if not text.endswith((".yaml", ".yml")):
        return text
    import yaml

    path = Path(text).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRuntimeEnv(
            f"runtime_env.conda: {path} can't be read: {error.strerror}."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRuntimeEnv(f"runtime_env.conda: {path} is not YAML: {reason}.") from None
    if not isinstance(content, dict):
        raise InvalidRuntimeEnv(f"runtime_env.conda: {path} must hold a mapping.")
    return content
