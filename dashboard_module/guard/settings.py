"""What may be set about the guard: environment variables, and options of the gateway."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ray_jobs.environ import MOST, number
from ray_jobs.models import GCS_MAX_PACKAGE_BYTES

from .clients import Network, networks
from .hosts import impossible

logger = logging.getLogger(__name__)

ALLOWED_HOSTS_VARIABLE = "RAY_JOBS_ALLOWED_HOSTS"
TRUSTED_PROXIES_VARIABLE = "RAY_JOBS_TRUSTED_PROXIES"
REDACT_VARIABLE = "RAY_JOBS_REDACT"
AUDIT_LOG_VARIABLE = "RAY_JOBS_AUDIT_LOG"
#: As the value of that: no audit.
NO_AUDIT = "none"

#: A submission fits easily: what it holds goes through one environment variable of 128 KiB.
DEFAULT_MAX_SUBMISSION_BYTES = 2 * 1024 * 1024
#: A smaller share is one at a time, like this one.
LEAST_CLIENT_SHARE = 1e-6


class GuardSettings(msgspec.Struct, kw_only=True, frozen=True):
    """Who and how much is let in. A limit of 0 is none."""

    #: Names in `Host` beside the machine's own; None: `Host` isn't looked at.
    allowed_hosts: tuple[str, ...] | None = None
    #: Proxies whose `X-Forwarded-For` is believed.
    trusted_proxies: tuple[Network, ...] = ()
    #: Secrets are kept from everyone, not from browsers only.
    redact_always: bool = False
    max_requests: int = 2_000  #: At once, but those that wait: see below.
    max_streams: int = 20_000  #: Followed logs and long polls, at once.
    #: Of these two, and of the uploads, the part that one client may have. 1 is all.
    max_client_share: float = 0.75
    max_submissions_per_s: float = 1_000.0  #: Of one client; five times as many in a burst.
    max_queued_jobs: int = 100_000  #: PENDING jobs.
    max_submission_bytes: int = DEFAULT_MAX_SUBMISSION_BYTES
    max_package_bytes: int = GCS_MAX_PACKAGE_BYTES
    audit_path: str | None = None  #: None: no audit.
    audit_max_bytes: int = 16 * 1024 * 1024
    audit_files: int = 8


def settings(
    *,
    default_audit_path: str,
    checks_host: bool,
    allowed_hosts: Sequence[str] = (),
    redact_always: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> GuardSettings:
    """Return the settings of this process. Wrong values are logged, and the defaults taken.

    Args:
        checks_host: Whether `Host` is looked at without the variable that lists names.
        allowed_hosts: More names, from the command line.
        redact_always: Likewise.
    """
    listed = _words(environ.get(ALLOWED_HOSTS_VARIABLE, ""))
    names = (*listed, *allowed_hosts)
    if no_names := impossible(names):
        # They stay: without them the plugin might not look at Host at all.
        logger.warning(
            "%s, --allowed-host: no names of hosts: %s", ALLOWED_HOSTS_VARIABLE, ", ".join(no_names)
        )
    proxies, wrong = networks(_words(environ.get(TRUSTED_PROXIES_VARIABLE, "")))
    if wrong:
        logger.warning("%s: no addresses: %s", TRUSTED_PROXIES_VARIABLE, ", ".join(wrong))
    audit_path = environ.get(AUDIT_LOG_VARIABLE) or default_audit_path
    redact = environ.get(REDACT_VARIABLE, "")
    if redact not in ("", "always", "browsers"):
        logger.warning("%s=%s is neither always nor browsers: always", REDACT_VARIABLE, redact)
    defaults = GuardSettings()
    numbers: dict[str, Any] = {
        name: number(environ, f"RAY_JOBS_{name.upper()}", getattr(defaults, name), *bounds)
        for name, bounds in _NUMBERS.items()
    }
    return GuardSettings(
        allowed_hosts=names if checks_host or listed else None,
        trusted_proxies=tuple(proxies),
        redact_always=redact_always or redact not in ("", "browsers"),
        audit_path=None if audit_path == NO_AUDIT else audit_path,
        **numbers,
    )


#: The numbers that may be set, each by its name in capitals, and the least and most of each.
_NUMBERS: dict[str, tuple[float, float]] = {
    "max_requests": (0, MOST),
    "max_streams": (0, MOST),
    # 75, meant as percent, would be no limit.
    "max_client_share": (LEAST_CLIENT_SHARE, 1),
    "max_submissions_per_s": (0, MOST),
    "max_queued_jobs": (0, MOST),
    "max_submission_bytes": (1, MOST),
    "max_package_bytes": (1, MOST),
    "audit_max_bytes": (1, MOST),
    "audit_files": (1, MOST),
}


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
