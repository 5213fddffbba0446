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

#: A supervisor that had its job for so long, in seconds, is no sign of trouble.
LIVED_S = 1.0
#: Else the job waits for its next one: so long at first, then longer and longer. Each costs half a
#: second of CPU.
ADOPTION_PAUSE_S = 0.05
LONGEST_ADOPTION_PAUSE_S = 20.0


class AdoptionPauses:
    """How long a job waits for its next supervisor. There is no end to it: the job runs on."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def after(self, lived_s: float) -> float:
        """Return how long to wait, in seconds, after a supervisor.

        Args:
            lived_s: For how long it had the job, in seconds; 0 if it never did.
        """
        if lived_s >= LIVED_S:
            self._next_s = 0.0
        pause_s = self._next_s
        self._next_s = min(LONGEST_ADOPTION_PAUSE_S, max(ADOPTION_PAUSE_S, pause_s * 2))
        return pause_s


class Lead:
    """The leading of one job by this manager."""

    def __init__(self, submission_id: str, recovering: bool) -> None:
        self.submission_id = submission_id
        #: An earlier manager may have begun to lead the job.
        self.recovering = recovering
        #: The job's supervisor, from the moment of its creation.
        self.seat: Seat | None = None
        self.creation: asyncio.Future[Any] | None = None
        self.pauses = AdoptionPauses()
        #: How the job ended, once it was told: the copy of its log may take longer.
        self.outcome: dict[str, Any] | None = None
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
