"""What the runner works on: one lead for each live job, and the services that it works with."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from ray_jobs.manager.environments import Environments, Pins
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.manager.pool import Pool
from ray_jobs.manager.seats import Seat
from ray_jobs.manager.supervisors import Supervisors


class Lead:
    """The leading of one job by this manager."""

    def __init__(self, submission_id: str, recovering: bool) -> None:
        self.submission_id = submission_id
        #: An earlier manager may have begun to lead the job.
        self.recovering = recovering
        #: The job's supervisor, from the moment of its creation.
        self.seat: Seat | None = None
        self.creation: asyncio.Future[Any] | None = None
        #: The job's runtime environment, while Ray's agent holds it for the job.
        self.held_env: dict[str, Any] | None = None
        self.pinned: list[str] = []
        self.task: asyncio.Task[None] | None = None


@dataclasses.dataclass(frozen=True)
class Services:
    """What a runner works with."""

    journal: Journal
    supervisors: Supervisors
    pool: Pool
    environments: Environments
    pins: Pins
    logs: JobLogs
    #: This node, the head, where the pool is.
    node_id: str
    #: The URL of a node's dashboard agent, by the node's id.
    agent_address: Callable[[str], Awaitable[str | None]]
    #: Whether a node is up, by its id.
    node_lives: Callable[[str], Awaitable[bool]]
    #: Told of each job that has ended, by its id, once nothing is left to be done for it.
    on_end: Callable[[str], None]
