"""What the client gives to its callers, beside the wire types of `ray_jobs.models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """One step in packing and uploading a directory or file of a runtime environment."""

    stage: Literal["hashing", "zipping", "uploading"]
    path: str  #: The directory or file that the user named.
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class ServerInfo:
    """What a job server says of itself."""

    is_ray_jobs: bool  #: False for Ray's own job server.
    server_version: str | None  #: The version of ray-jobs on the server, or None.
    ray_version: str
    api_version: str  #: The version of Ray's job API, "4" since Ray 2.2.
    session_name: str
    max_package_bytes: int  #: The largest package that the server takes.
