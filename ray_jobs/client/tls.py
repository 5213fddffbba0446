"""How the server's certificate is verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import InvalidRequest

if TYPE_CHECKING:
    import ssl

#: Ray's own client (through `requests`) takes its default from these.
_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def check_verify(
    verify: bool | str | os.PathLike[str], environment: Mapping[str, str] | None = None
) -> bool | Path:
    """Return whether to verify certificates, or the path of what to verify them against.

    Raises:
        InvalidRequest: neither a bool nor the path of an existing file or directory.
    """
    environment = os.environ if environment is None else environment
    if verify is False:
        return False
    source = "verify"
    if verify is True:
        for name in _BUNDLE_VARIABLES:
            if environment.get(name):
                verify, source = environment[name], name
                break
        else:
            return True
    if not isinstance(verify, str | os.PathLike):
        raise InvalidRequest(f"verify must be a bool or a path, not {type(verify).__name__}.")
    path = Path(verify).expanduser()
    if not path.exists():
        raise InvalidRequest(
            f"The CA certificates {str(path)!r} (from {source}) don't exist.",
            hint="verify takes True, False, or the path of a PEM file or of a directory of them.",
        )
    return path


def ssl_argument(verify: bool | Path) -> ssl.SSLContext | bool:
    """Return what aiohttp takes for `ssl`.

    Raises:
        InvalidRequest: the file holds no certificates.
    """
    if isinstance(verify, bool):
        return verify
    import ssl

    try:
        if verify.is_dir():
            return ssl.create_default_context(capath=str(verify))
        return ssl.create_default_context(cafile=str(verify))
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequest(f"{verify} holds no CA certificates: {error}.") from error
