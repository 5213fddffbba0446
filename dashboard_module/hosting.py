"""What plugin and gateway have in common as hosts of a face."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata

import aiohttp.web

from ray_jobs import _ray

from .face import MAX_BIG_UPLOADS, MAX_UPLOADS, FaceConfig
from .guard import Guard, GuardSettings, settings
from .guard.clients import addresses, counted_as
from .guard.limits import share_of
from .ray_ports import RayPackages
from .redaction import may_be_browser


def make_guard(
    server: str,
    *,
    log_dir: str,
    listening: str | None = None,
    checks_host: bool = False,
    allowed_hosts: Sequence[str] = (),
    redact_always: bool = False,
) -> Guard:
    """Return the guard of a host, as the environment and the host's own options say.

    Args:
        server: "dashboard" or "gateway".
        listening: The address on which it listens, if it is known.
        checks_host: Whether `Host` is looked at unless the environment says so.
        allowed_hosts: More names that are taken in it.
        redact_always: Keep secrets from everyone.
    """
    return Guard(
        settings(
            default_audit_path=os.path.join(log_dir, f"ray-jobs-audit-{server}.jsonl"),
            checks_host=checks_host,
            allowed_hosts=allowed_hosts,
            redact_always=redact_always,
        ),
        server=server,
        listening=listening,
        demands_token=_ray.is_token_auth_enabled,
    )


def face_config(
    guarded: GuardSettings,
    *,
    log_dir: str,
    session_name: str,
    ray_version: str,
    ray_commit: str,
) -> FaceConfig:
    """Return a face's configuration on this head node."""
    keeps_from_browsers = _ray.redacts_runtime_env()

    def redact(request: aiohttp.web.Request) -> bool:
        return guarded.redact_always or (keeps_from_browsers and may_be_browser(request))

    return FaceConfig(
        log_dir=log_dir,
        session_name=session_name,
        ray_version=ray_version,
        ray_commit=ray_commit,
        server_version=metadata.version("ray-jobs"),
        redact=redact,
        max_submission_bytes=guarded.max_submission_bytes,
        max_queued_jobs=guarded.max_queued_jobs,
        client=lambda request: counted_as(addresses(request, guarded.trusted_proxies)[0]),
        upload_share=share_of(MAX_UPLOADS, guarded.max_client_share),
        check_share=share_of(MAX_BIG_UPLOADS, guarded.max_client_share),
    )


def packages(guarded: GuardSettings, kv: _ray.Kv, gcs_address: str) -> RayPackages:
    """Return the packages in the GCS, of at most the size that was set."""
    found = RayPackages(kv, gcs_address)
    found.max_bytes = min(found.max_bytes, guarded.max_package_bytes)
    return found
