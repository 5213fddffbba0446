"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

#: From here on other work on the machine is likely to show in the figures.
BUSY_LOAD = 0.5


def machine() -> dict[str, Any]:
    """Return machine, versions and date, as the JSON report has them."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "ray": metadata.version("ray"),
        "ray_jobs": metadata.version("ray-jobs"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def header(facts: dict[str, Any]) -> str:
    """Return the same for people."""
    lines = [
        f"{facts['date']}: {facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB,"
        f" {facts['kernel']}, Python {facts['python']}, Ray {facts['ray']},"
        f" ray-jobs {facts['ray_jobs']}"
    ]
    if facts["load_before"] > BUSY_LOAD:
        lines.append(
            f"The machine was busy before the run (load {facts['load_before']}):"
            " other work is in the figures."
        )
    return "\n".join(lines)


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
