"""What the fields of a runtime environment must look like. Pure; the server's judgement.

Ray 2.60 leaves several fields unchecked until a node builds the environment, and ignores those that
it doesn't know. Here both are refused at the submission, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ray_jobs.errors import InvalidRuntimeEnv
from ray_jobs.scrubbing import shown

#: Set on the head node where the cluster has plugins, which bring fields of their own.
PLUGIN_VARIABLES = ("RAY_RUNTIME_ENV_PLUGINS", "RAY_RUNTIME_ENV_PLUGIN_SCHEMAS")
#: Nobody's environment is nested so deeply; Python itself gives up at a few hundred levels.
MAX_DEPTH = 50
#: What the formats in which records travel can hold.
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
#: Ray keeps the time in 32 bits.
MAX_SETUP_TIMEOUT_S = 2**31 - 1

_CONFIG_FIELDS = ("setup_timeout_seconds", "eager_install", "log_files")


def check_fields(runtime_env: Mapping[str, Any]) -> None:
    """Raise `InvalidRuntimeEnv`, naming the field, for a known field of a wrong type, or return.

    A None counts as absent.
    """
    for name, value in runtime_env.items():
        _check_plain(name, value)
        if value is not None and name in _CHECKS:
            _CHECKS[name](name, value)


def check_known(runtime_env: Mapping[str, Any], *, has_plugins: bool) -> None:
    """Raise `InvalidRuntimeEnv` for a field that neither Ray nor a plugin of the cluster knows.

    Args:
        has_plugins: The cluster has plugins of its own, which bring fields of their own.
    """
    for name, value in runtime_env.items():
        if name in KNOWN_FIELDS or value is None:
            continue
        # Names with an underscore are Ray's own; one of them would turn its checks off.
        if not has_plugins or name.startswith("_"):
            public = ", ".join(sorted(each for each in KNOWN_FIELDS if each[0] != "_"))
            raise InvalidRuntimeEnv(
                f"runtime_env has no field {shown(name)!r}. Its fields are {public}."
            )


def _check_plain(field: str, value: object) -> None:
    """Refuse what couldn't even be recorded. Not recursive: that is the point."""
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            if "\x00" in item:
                raise InvalidRuntimeEnv(f"{_shown(field)} holds a NUL character.")
        elif isinstance(item, int):
            if not MIN_INTEGER <= item <= MAX_INTEGER:
                raise InvalidRuntimeEnv(f"{_shown(field)} holds a number of more than 64 bits.")
        elif isinstance(item, (dict, list)):
            if depth > MAX_DEPTH:
                raise InvalidRuntimeEnv(
                    f"{_shown(field)} is nested more than {MAX_DEPTH} levels deep."
                )
            inner = [*item, *item.values()] if isinstance(item, dict) else item
            pending.extend((each, depth + 1) for each in inner)


def _shown(field: str) -> str:
    return f"runtime_env[{shown(field)!r}]"


def _refuse(name: str, wanted: str, value: object) -> InvalidRuntimeEnv:
    return InvalidRuntimeEnv(f"runtime_env['{name}'] must be {wanted}, got {json_type(value)}.")


def json_type(value: object) -> str:
    """Return what a value of JSON is called there: a bool is no number."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names |= {list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _check_key(name: str, key: str, known: Collection[str]) -> None:
    if key not in known:
        raise InvalidRuntimeEnv(
            f"runtime_env['{name}'] has no field {shown(key)!r}. Its fields are {', '.join(known)}."
        )


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _refuse(name, "a string", value)


def _texts(name: str, value: object) -> None:
    if not _is_texts(value):
        raise _refuse(name, "an array of strings", value)


def _text_or_object(name: str, value: object) -> None:
    if not isinstance(value, str | dict):
        raise _refuse(name, "a string or an object", value)


def _installer(name: str, value: object) -> None:
    """Packages for pip or uv: a list, the path of a file on the head node, or an object."""
    if not isinstance(value, dict):
        if not isinstance(value, str) and not _is_texts(value):
            raise _refuse(name, "an array of strings, or an object with 'packages'", value)
        return
    checks = _INSTALLER_FIELDS[name]
    for key, each in {"packages": None, **value}.items():
        _check_key(name, key, checks)
        checks[key](f"{name}']['{key}", each)


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _refuse(name, "true or false", value)


def _text_or_texts(name: str, value: object) -> None:
    if not isinstance(value, str) and not _is_texts(value):
        raise _refuse(name, "an array of strings", value)


def _container(name: str, value: object) -> None:
    """Ray checks nothing of it: a number would fail on the node, in the words of Python."""
    if not isinstance(value, dict):
        raise _refuse(name, "an object", value)
    for key, each in value.items():
        _check_key(name, key, _CONTAINER_FIELDS)
        if each is not None:
            _CONTAINER_FIELDS[key](f"{name}']['{key}", each)


def _config(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise _refuse(name, "an object", value)
    for key in value:
        _check_key(name, key, _CONFIG_FIELDS)
    timeout_s = value.get("setup_timeout_seconds", 1)
    is_whole = isinstance(timeout_s, int) and not isinstance(timeout_s, bool)
    if not is_whole or not (1 <= timeout_s <= MAX_SETUP_TIMEOUT_S or timeout_s == -1):
        raise InvalidRuntimeEnv(
            "runtime_env['config']['setup_timeout_seconds'] must be a whole number from 1 to"
            f" {MAX_SETUP_TIMEOUT_S}, or -1 for no limit, got"
            f" {shown(str(timeout_s)) if is_whole else json_type(timeout_s)}."
        )
    _flag("config']['eager_install", value.get("eager_install", True))
    if value.get("log_files") is not None:
        _texts("config']['log_files", value["log_files"])


_INSTALLER_FIELDS: dict[str, dict[str, Callable[[str, Any], None]]] = {
    "pip": {
        "packages": _text_or_texts,
        "pip_check": _flag,
        "pip_version": _text,
        "pip_install_options": _texts,
    },
    "uv": {
        "packages": _texts,
        "uv_check": _flag,
        "uv_version": _text,
        "uv_pip_install_options": _texts,
    },
}
_CONTAINER_FIELDS: dict[str, Callable[[str, Any], None]] = {
    "image": _text,
    "worker_path": _text,
    "run_options": _texts,
}
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "working_dir": _text,
    "py_modules": _texts,
    "excludes": _texts,
    "pip": _installer,
    "uv": _installer,
    "conda": _text_or_object,
    "config": _config,
    "container": _container,
    "image_uri": _text,
    "py_executable": _text,
    "java_jars": _texts,
    "worker_process_setup_hook": _text,
    "nsight": _text_or_object,
    "_nsight": _text_or_object,
    "rocprof_sys": _text_or_object,
    "_rocprof_sys": _text_or_object,
    "_ray_release": _text,
    "_ray_commit": _text,
    "_inject_current_ray": _flag,
}
#: Every field that Ray 2.60 knows, by the names under which clients send them.
KNOWN_FIELDS = frozenset(_CHECKS) | {"env_vars"}
