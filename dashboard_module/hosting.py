"""What plugin and gateway have in common as hosts of a face."""

from __future__ import annotations

from importlib import metadata

import aiohttp.web

from ray_jobs import _ray

from .face import FaceConfig
from .redaction import is_browser_request


def face_config(
    *, log_dir: str, session_name: str, ray_version: str, ray_commit: str
) -> FaceConfig:
    """Return a face's configuration on this head node."""
    redacts = _ray.redacts_runtime_env()

    def redact(request: aiohttp.web.Request) -> bool:
        return redacts and is_browser_request(request)

    return FaceConfig(
        log_dir=log_dir,
        session_name=session_name,
        ray_version=ray_version,
        ray_commit=ray_commit,
        server_version=metadata.version("ray-jobs"),
        redact=redact,
    )
