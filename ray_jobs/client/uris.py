"""Remote URIs in a runtime environment. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ray_jobs.client.address import redact
from ray_jobs.errors import InvalidRuntimeEnv

#: The endings of what Ray unpacks.
WORKING_DIR = (".zip", ".tar.gz", ".tgz", ".tar.xz")
PY_MODULES = (".zip", ".whl", ".tar.gz", ".tgz", ".tar.xz")

_FETCHED = {"gcs", "http", "https", "s3", "gs", "azure", "abfss", "file"}
_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_uri(text: str) -> bool:
    """Return whether a text is a URI, and not a path."""
    return _URI.match(text) is not None


def check_uri(uri: str, field: str, endings: tuple[str, ...]) -> None:
    """Check that Ray can make something of a URI. What it names isn't looked at.

    Raises:
        InvalidRuntimeEnv: it can't.
    """
    parts = urlsplit(uri)
    shown = redact(uri.split("?", 1)[0])
    if parts.scheme == "local":
        path = uri.split("://", 1)[1]
        if not path.startswith("/") or path.endswith(PY_MODULES):
            raise InvalidRuntimeEnv(
                f"runtime_env.{field}: {shown} must name a directory by its absolute path, as in "
                "local:///opt/app."
            )
        return
    if parts.scheme not in _FETCHED:
        known = ", ".join(sorted({*_FETCHED, "local"}))
        raise InvalidRuntimeEnv(
            f"runtime_env.{field}: {shown} is of the protocol {parts.scheme}, not of {known}."
        )
    if not (parts.netloc + parts.path).endswith(endings):
        raise InvalidRuntimeEnv(
            f"runtime_env.{field}: {shown} must end in one of {', '.join(endings)}."
        )
