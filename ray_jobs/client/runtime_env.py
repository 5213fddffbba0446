"""Runtime environments: what a user may write, in the shape in which Ray's own client sends it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ray_jobs.client import dependencies
from ray_jobs.client.packaging import Package
from ray_jobs.client.uris import PY_MODULES, WORKING_DIR, check_uri, is_uri
from ray_jobs.errors import InvalidRuntimeEnv

#: Names under which the fields are known to users, and to Ray.
_RENAMED = {"nsight": "_nsight", "rocprof_sys": "_rocprof_sys"}
#: Set where a cluster has plugins of its own, which bring fields of their own.
_PLUGIN_VARIABLES = ("RAY_RUNTIME_ENV_PLUGINS", "RAY_RUNTIME_ENV_PLUGIN_SCHEMAS")

#: As long as the URI of a package.
_PLACEHOLDER = f"gcs://_ray_pkg_{'0' * 40}.zip"
#: Ray's default, in seconds.
SETUP_TIMEOUT_S = 600


@dataclass
class Plan:
    """A runtime environment, and what has to be uploaded for it."""

    fields: dict[str, Any]
    packages: list[Package] = field(default_factory=list)

    def with_placeholders(self) -> dict[str, Any]:
        """Return the environment as it will be but for the hashes in the packages' URIs."""
        return self.with_uris([_PLACEHOLDER] * len(self.packages))

    def with_uris(self, uris: list[str]) -> dict[str, Any]:
        """Return the environment with the URIs of the packages, in their order."""
        fields = copy.deepcopy(self.fields)
        for package, uri in zip(self.packages, uris, strict=True):
            if package.field == "working_dir":
                fields["working_dir"] = uri
            else:
                fields["py_modules"][int(package.field[len("py_modules[") : -1])] = uri
        return fields


def normalize(runtime_env: Mapping[str, Any]) -> Plan:
    """Check a runtime environment, read the local files that it names, and find what to upload.

    Raises:
        InvalidRuntimeEnv: naming the field.
    """
    if not isinstance(runtime_env, Mapping):
        raise InvalidRuntimeEnv(f"runtime_env must be a dict, not {_kind(runtime_env)}.")
    given = {_name(key): value for key, value in runtime_env.items() if value is not None}
    _check_names(given)
    fields: dict[str, Any] = {}
    for name, value in given.items():
        try:
            normalized = _FIELDS[name](value) if name in _FIELDS else copy.deepcopy(value)
        except (TypeError, RecursionError) as error:
            # What can't even be copied: an open file, a lock.
            raise InvalidRuntimeEnv(f"runtime_env.{name} is no plain data: {error}.") from error
        if normalized is not None:
            fields[name] = normalized
    _check_combinations(fields)
    if "_inject_current_ray" not in fields and "RAY_RUNTIME_ENV_LOCAL_DEV_MODE" in os.environ:
        fields["_inject_current_ray"] = True
    return _find_packages(fields)


def _name(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidRuntimeEnv(f"The fields of runtime_env are strings, not {key!r}.")
    return _RENAMED.get(key, key)


def _kind(value: object) -> str:
    return type(value).__name__


def _check_names(given: Mapping[str, Any]) -> None:
    unknown = sorted(set(given) - set(_FIELDS))
    if not unknown or any(os.environ.get(name) for name in _PLUGIN_VARIABLES):
        return
    import difflib

    public = sorted(name for name in _FIELDS if not name.startswith("_"))
    near = difflib.get_close_matches(unknown[0], public, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Its fields are {', '.join(public)}."
    raise InvalidRuntimeEnv(
        f"runtime_env has no field {unknown[0]!r}.",
        hint=f"{hint} (For a plugin of your cluster, set {_PLUGIN_VARIABLES[0]} here too.)",
    )


def _check_combinations(fields: Mapping[str, Any]) -> None:
    installers = [name for name in ("pip", "uv", "conda") if fields.get(name) is not None]
    if len(installers) > 1:
        raise InvalidRuntimeEnv(
            f"runtime_env has both {installers[0]} and {installers[1]}: only one of pip, uv and "
            "conda can be used.",
            hint="A conda environment may list pip packages among its dependencies.",
        )
    for name in ("container", "image_uri"):
        others = sorted(set(fields) - {name, "config", "env_vars"})
        if fields.get(name) and others:
            raise InvalidRuntimeEnv(
                f"runtime_env.{name} can only be used with config and env_vars, not with "
                f"{', '.join(others)}."
            )


def _text(name: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            hint = None
            if name == "worker_process_setup_hook" and callable(value):
                hint = "A job takes the name of a function; a callable works in ray.init() only."
            raise InvalidRuntimeEnv(
                f"runtime_env.{name} must be a string, not {_kind(value)}.", hint=hint
            )
        return value

    return check


def _texts(name: str) -> Callable[[Any], list[str] | None]:
    def check(value: Any) -> list[str] | None:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise InvalidRuntimeEnv(f"runtime_env.{name} must be a list of strings.")
        return list(value) or None

    return check


def _mapping(name: str, *, or_text: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if or_text and isinstance(value, str):
            return value
        if not isinstance(value, Mapping):
            wanted = "a string or a dict" if or_text else "a dict"
            raise InvalidRuntimeEnv(f"runtime_env.{name} must be {wanted}, not {_kind(value)}.")
        return copy.deepcopy(dict(value))

    return check


def _env_vars(value: Any) -> dict[str, str] | None:
    if not isinstance(value, Mapping):
        raise InvalidRuntimeEnv(f"runtime_env.env_vars must be a dict, not {_kind(value)}.")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            # The value isn't shown: it may be a secret.
            raise InvalidRuntimeEnv(
                f"runtime_env.env_vars must be a dict of strings, but {key!r} is of type "
                f"{_kind(item) if isinstance(key, str) else _kind(key)}."
            )
    return dict(value) or None


def _config(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRuntimeEnv(f"runtime_env.config must be a dict, not {_kind(value)}.")
    unknown = sorted(map(str, set(value) - {"setup_timeout_seconds", "eager_install", "log_files"}))
    if unknown:
        raise InvalidRuntimeEnv(f"runtime_env.config has no field {unknown[0]!r}.")
    timeout = value.get("setup_timeout_seconds", SETUP_TIMEOUT_S)
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int)
        or (timeout <= 0 and timeout != -1)
    ):
        raise InvalidRuntimeEnv(
            "runtime_env.config.setup_timeout_seconds must be a positive whole number, or -1 for "
            f"no limit, not {timeout!r}."
        )
    eager = value.get("eager_install", True)
    if not isinstance(eager, bool):
        raise InvalidRuntimeEnv("runtime_env.config.eager_install must be True or False.")
    log_files = _texts("config.log_files")(value.get("log_files") or [])
    return {
        "setup_timeout_seconds": timeout,
        "eager_install": eager,
        "log_files": log_files or [],
    }


def _working_dir(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise InvalidRuntimeEnv(
            f"runtime_env.working_dir must be a path or a URI, not {_kind(value)}."
        )
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise InvalidRuntimeEnv("runtime_env.working_dir is empty.")
    return text


def _py_modules(value: Any) -> list[str] | None:
    if not isinstance(value, list | tuple):
        raise InvalidRuntimeEnv(f"runtime_env.py_modules must be a list, not {_kind(value)}.")
    return [_py_module(one, f"py_modules[{index}]") for index, one in enumerate(value)] or None


def _py_module(value: Any, name: str) -> str:
    if isinstance(value, ModuleType):
        paths = list(getattr(value, "__path__", ()))
        file = getattr(value, "__file__", None)
        if not paths and file:
            paths = [file]
        if len(paths) != 1:
            raise InvalidRuntimeEnv(
                f"runtime_env.{name}: the module {value.__name__} is spread over {len(paths)} "
                "directories; only one can be sent."
            )
        return str(paths[0])
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InvalidRuntimeEnv(
            f"runtime_env.{name} must be a path, a URI or an imported module, not {_kind(value)}."
        )
    return str(value)


def _anything(value: Any) -> Any:
    return copy.deepcopy(value)


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "working_dir": _working_dir,
    "py_modules": _py_modules,
    "excludes": _texts("excludes"),
    "pip": dependencies.pip,
    "uv": dependencies.uv,
    "conda": dependencies.conda,
    "env_vars": _env_vars,
    "config": _config,
    "container": _mapping("container"),
    "image_uri": _text("image_uri"),
    "py_executable": _text("py_executable"),
    "java_jars": _texts("java_jars"),
    "worker_process_setup_hook": _text("worker_process_setup_hook"),
    "_nsight": _mapping("nsight", or_text=True),
    "_rocprof_sys": _mapping("rocprof_sys", or_text=True),
    "_ray_release": _anything,
    "_ray_commit": _anything,
    "_inject_current_ray": _anything,
}


def _find_packages(fields: dict[str, Any]) -> Plan:
    packages = []
    excludes = tuple(fields.get("excludes", ()))
    working_dir = fields.get("working_dir")
    if working_dir is not None:
        if is_uri(working_dir):
            check_uri(working_dir, "working_dir", WORKING_DIR)
        else:
            packages.append(_package_of_working_dir(working_dir, excludes))
    for index, module in enumerate(fields.get("py_modules", ())):
        name = f"py_modules[{index}]"
        if is_uri(module):
            check_uri(module, name, PY_MODULES)
        else:
            packages.append(_package_of_module(module, name, excludes))
    return Plan(fields, packages)


def _package_of_working_dir(text: str, excludes: tuple[str, ...]) -> Package:
    path = _absolute(text)
    if path.is_dir():
        return Package("working_dir", path, excludes=excludes)
    if path.is_file() and path.name.endswith(WORKING_DIR):
        return Package("working_dir", path, kind="file")
    if path.exists():
        raise InvalidRuntimeEnv(
            f"runtime_env.working_dir: {path} is neither a directory nor an archive of a kind "
            f"that Ray unpacks ({', '.join(WORKING_DIR)})."
        )
    raise InvalidRuntimeEnv(f"runtime_env.working_dir: there is no {path} on this machine.")


def _package_of_module(text: str, name: str, excludes: tuple[str, ...]) -> Package:
    path = _absolute(text)
    if path.is_dir():
        return Package(name, path, excludes=excludes, include_parent=True)
    if path.is_file() and path.suffix == ".py":
        return Package(name, path, kind="module")
    if path.is_file() and path.suffix == ".whl":
        return Package(name, path, kind="file")
    if path.exists():
        raise InvalidRuntimeEnv(
            f"runtime_env.{name}: {path} is neither a directory, nor a .py file, nor a wheel."
        )
    raise InvalidRuntimeEnv(f"runtime_env.{name}: there is no {path} on this machine.")


def _absolute(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise InvalidRuntimeEnv(f"{text}: {error}") from None
