"""What a server has written about who did what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_jobs.dashboard_module.guard.audit import refusals_path

from tests.cluster import Cluster


def audit(cluster: Cluster, server: str) -> list[dict[str, Any]]:
    """Return the lines of a server so far, those about refusals last.

    Args:
        server: "dashboard" or "gateway".
    """
    path = cluster.logs_dir / f"ray-jobs-audit-{server}.jsonl"
    return [
        json.loads(line)
        for each in (path, Path(refusals_path(str(path))))
        if each.exists()  # something has been written
        for line in each.read_text().splitlines()
    ]
