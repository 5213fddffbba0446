"""Taking secrets out of texts: passwords and tokens of URLs, and values that are known. Pure.

For whatever leaves the server and isn't the answer to the job's own client: logs, audit, archive,
web pages. A password that stands somewhere else in a text can't be known for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ray_jobs.models import JobInfo

PLACEHOLDER = "<redacted>"
#: Shorter values ("1", "true") would be found in half of all words.
MIN_VALUE_CHARACTERS = 6
#: Of a JSON value; no runtime environment is deeper.
MAX_DEPTH = 50

# What a URL ends at, in texts, in JSON and in shell commands.
_END = r"/\s\"'<>\\"
#: `user:password@` or `token@` of a URL. A password may hold an @ and, malformed, ? and #.
_USERINFO = re.compile(rf"(?<=://)(?:[^{_END}@:]*:[^{_END}]*|[^{_END}?#]+)@")
#: The value of a parameter like `X-Amz-Signature=` or `access_token=`. The lengths are bounded, so
#: that a long text costs no more than its length.
_PARAMETER = re.compile(
    r"(?<=[?&])([\w.-]{0,40}(?:token|secret|passw|signature|sig|credential|key)[\w.-]{0,40}=)"
    r"[^&#\s\"'<>\\]+",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"\b((?:Bearer|Basic)\s{1,4})[\w.~+/=-]{8,}", re.IGNORECASE)


def scrubbed(text: str, values: Iterable[str] = ()) -> str:
    """Return a text without the credentials of its URLs and headers, and without some values.

    Args:
        values: Secrets that are known, such as those of `env_vars`.
    """
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_VALUE_CHARACTERS and value in text:
            text = text.replace(value, PLACEHOLDER)
    if "://" in text:
        text = _USERINFO.sub(f"{PLACEHOLDER}@", text)
        text = _PARAMETER.sub(rf"\g<1>{PLACEHOLDER}", text)
    return _AUTHORIZATION.sub(rf"\g<1>{PLACEHOLDER}", text)


def scrubbed_deep(value: Any, values: Iterable[str] = (), depth: int = MAX_DEPTH) -> Any:
    """Return a copy of a JSON value, all of its texts `scrubbed`; what is deeper is left out."""
    if isinstance(value, str):
        return scrubbed(value, values)
    if isinstance(value, dict | list) and depth == 0:
        return PLACEHOLDER
    if isinstance(value, dict):
        return {key: scrubbed_deep(item, values, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [scrubbed_deep(item, values, depth - 1) for item in value]
    return value


def secret_values(runtime_env: dict[str, Any] | None) -> list[str]:
    """Return the values of a runtime environment's variables."""
    env_vars = (runtime_env or {}).get("env_vars")
    if not isinstance(env_vars, dict):
        return []
    return [value for value in env_vars.values() if isinstance(value, str)]


def scrubbed_runtime_env(runtime_env: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy of a runtime environment: variables keep only their names, URLs no password."""
    if not runtime_env:
        return runtime_env
    found: dict[str, Any] = scrubbed_deep(runtime_env, secret_values(runtime_env))
    if isinstance(found.get("env_vars"), dict):
        found["env_vars"] = dict.fromkeys(found["env_vars"], PLACEHOLDER)
    return found


def redact(info: JobInfo) -> None:
    """Take the secrets out of a job that is about to be shown. What it refers to is copied.

    Where they may stand in texts: its id, which may hold such a value too, stays as it is.
    """
    values = secret_values(info.runtime_env)
    info.runtime_env = scrubbed_runtime_env(info.runtime_env)
    info.entrypoint = scrubbed(info.entrypoint or "", values)
    info.metadata = scrubbed_deep(info.metadata, values)
    if info.message:
        info.message = scrubbed(info.message, values)
