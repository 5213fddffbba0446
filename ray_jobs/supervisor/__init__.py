"""The JobSupervisor: the actor that has a job's entrypoint run on its node and tells how it ended.

Self-contained (rule 8): standard library and ray. Its modules (`MODULES`) are shipped by value, so
that it runs on nodes and in environments where ray_jobs isn't installed.
"""

from __future__ import annotations

from ray_jobs import channel, growth, log_holes
from ray_jobs.keeper import clock, files, processes, sockets
from ray_jobs.supervisor import actor, attempt, bounding, entrypoint, logs, node, orphans, zygotes

#: What is shipped by value.
MODULES = (
    clock,
    files,
    processes,
    sockets,
    channel,
    growth,
    log_holes,
    logs,
    attempt,
    bounding,
    node,
    entrypoint,
    zygotes,
    orphans,
    actor,
)
