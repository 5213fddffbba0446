"""Ray's bearer token, and the headers that go with every request."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ray_jobs.errors import AuthenticationFailed, InvalidRequest

HEADERS_VARIABLE = "RAY_JOB_HEADERS"
TOKEN_HINT = (
    "Give Ray's token in RAY_AUTH_TOKEN, name the file that holds it in RAY_AUTH_TOKEN_PATH, or "
    "put it into ~/.ray/auth_token (`ray get-auth-token` prints it on the head node)."
)
#: As RFC 9110 has it.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_NO_HEADER_VALUE = re.compile(r"[\x00-\x08\n-\x1f\x7f\ud800-\udfff]")
#: Where Kubernetes puts the token of a pod's service account.
_SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def find_token(environment: Mapping[str, str] | None = None) -> str | None:
    """Find Ray's token where Ray looks for it, in Ray's order.

    RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, the pod's service account (only with
    RAY_ENABLE_K8S_TOKEN_AUTH), `~/.ray/auth_token`. None is found with RAY_AUTH_MODE=disabled.

    Raises:
        AuthenticationFailed: RAY_AUTH_TOKEN_PATH names a file that holds no token.
    """
    environment = os.environ if environment is None else environment
    if environment.get("RAY_AUTH_MODE", "").strip().lower() == "disabled":
        return None
    token = environment.get("RAY_AUTH_TOKEN", "")
    if token:
        return _checked(token.strip(), "RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH", "")
    if named:
        token = _first_line(Path(named).expanduser())
        if not token:
            raise AuthenticationFailed(
                f"RAY_AUTH_TOKEN_PATH names {named}, which can't be read or holds no token.",
                hint=TOKEN_HINT,
            )
        return _checked(token, named)
    paths = []
    if environment.get("RAY_ENABLE_K8S_TOKEN_AUTH", "").lower() in {"1", "true"}:
        paths.append(Path(_SERVICE_ACCOUNT_TOKEN))
    home = environment.get("HOME") or os.path.expanduser("~")
    paths.append(Path(home) / ".ray" / "auth_token")
    for path in paths:
        token = _first_line(path)
        if token:
            return _checked(token, str(path))
    return None


def _first_line(path: Path) -> str:
    """Return the first line of a file, or nothing when it can't be read (as Ray does)."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _checked(token: str, source: str) -> str | None:
    if not token:
        return None
    if not (token.isascii() and token.isprintable()):
        raise AuthenticationFailed(
            f"The token in {source} has characters that no HTTP header can carry.", hint=TOKEN_HINT
        )
    return token


def default_headers(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers that RAY_JOB_HEADERS (a JSON object) asks for.

    Raises:
        InvalidRequest: it isn't a JSON object.
    """
    environment = os.environ if environment is None else environment
    text = environment.get(HEADERS_VARIABLE, "")
    if not text.strip():
        return {}
    import json

    hint = f"""For example: {HEADERS_VARIABLE}='{{"X-Team": "a"}}'"""
    try:
        headers = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{HEADERS_VARIABLE} is not valid JSON: {error}.", hint=hint) from None
    if not isinstance(headers, dict):
        raise InvalidRequest(f"{HEADERS_VARIABLE} must hold a JSON object.", hint=hint)
    try:
        return check_headers(headers)
    except InvalidRequest as error:
        raise InvalidRequest(f"{HEADERS_VARIABLE}: {error}", hint=hint) from None


def check_headers(headers: Mapping[str, object]) -> dict[str, str]:
    """Return headers as strings; those of the SDK, of RAY_JOB_HEADERS and of `--headers`.

    Raises:
        InvalidRequest: they are no mapping of names to texts or numbers, or HTTP can't carry them.
    """
    if not isinstance(headers, Mapping):
        raise InvalidRequest(f"headers must be a dict, not {type(headers).__name__}.")
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.match(name):
            raise InvalidRequest(
                f"{name!r} is not the name of a header: it takes letters, digits and hyphens."
            )
        # The value isn't shown: it may be a secret.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidRequest(f"The header {name} must be a string, not {type(value).__name__}.")
        text = str(value)
        if _NO_HEADER_VALUE.search(text):
            raise InvalidRequest(
                f"The header {name} has a line break, another control character, or bytes that "
                "aren't UTF-8 in it."
            )
        checked[name] = text
    return checked


def check_cookies(cookies: Mapping[str, object] | None) -> dict[str, str]:
    """Return cookies as strings; none for None.

    Raises:
        InvalidRequest: they are no mapping, or HTTP can't carry them.
    """
    if cookies is None:
        return {}
    if not isinstance(cookies, Mapping):
        raise InvalidRequest(f"cookies must be a dict, not {type(cookies).__name__}.")
    checked = {str(name): str(value) for name, value in cookies.items()}
    for name, text in checked.items():
        if not _HEADER_NAME.match(name) or _NO_HEADER_VALUE.search(text) or ";" in text:
            raise InvalidRequest(
                f"The cookie {name!r} has a name or a value that no HTTP header can carry."
            )
    return checked


def authorization(
    headers: Mapping[str, str], basic_auth: str | None, token: str | None
) -> dict[str, str]:
    """Return the headers to send: the user's, with the credentials of the URL and Ray's token.

    Ray looks at X-Ray-Authorization where Authorization is taken, by a proxy's basic
    authentication for instance.
    """
    merged = dict(headers)
    taken = {name.lower() for name in merged}
    if basic_auth is not None and "authorization" not in taken:
        merged["Authorization"] = basic_auth
        taken.add("authorization")
    if token is not None:
        name = "X-Ray-Authorization" if "authorization" in taken else "Authorization"
        if name.lower() not in taken:
            merged[name] = f"Bearer {token}"
    return merged
