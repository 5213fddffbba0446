"""The JobSupervisor: the actor that has a job's entrypoint run on its node and tells how it ended.

Self-contained (rule 8): standard library, ray, and `ray_jobs.inotify`. Its modules (`MODULES`) are
shipped by value, so that it runs on nodes and in environments where ray_jobs isn't installed.
"""

from __future__ import annotations

from ray_jobs import inotify
from ray_jobs.supervisor import actor, logs, node

#: What is shipped by value.
MODULES = (inotify, logs, node, actor)
