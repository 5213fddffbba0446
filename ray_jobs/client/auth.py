"""Ray's bearer token, and the headers that go with every request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ray_jobs.errors import AuthenticationFailed, InvalidRequest

HEADERS_VARIABLE = "RAY_JOB_HEADERS"
TOKEN_HINT = (
    "Give Ray's token in RAY_AUTH_TOKEN, name the file that holds it in RAY_AUTH_TOKEN_PATH, or "
    "put it into ~/.ray/auth_token (`ray get-auth-token` prints it on the head node)."
)
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
    import msgspec

    try:
        headers = msgspec.json.decode(text, type=dict[str, str | int | float])
    except msgspec.MsgspecError as error:
        raise InvalidRequest(
            f"{HEADERS_VARIABLE} must hold a JSON object of strings: {error}.",
            hint=f"""For example: {HEADERS_VARIABLE}='{{"X-Team": "a"}}'""",
        ) from None
    return {name: str(value) for name, value in headers.items()}


def check_headers(headers: Mapping[str, object] | None) -> dict[str, str] | None:
    """Return headers as strings.

    Raises:
        InvalidRequest: they are no mapping of strings, or could smuggle in other headers.
    """
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        raise InvalidRequest(f"headers must be a dict, not {type(headers).__name__}.")
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not name:
            raise InvalidRequest("headers must be a dict of strings.")
        text = str(value)
        if any(character in name + text for character in "\r\n\0"):
            raise InvalidRequest(f"The header {name!r} has a line break in it.")
        checked[name] = text
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
