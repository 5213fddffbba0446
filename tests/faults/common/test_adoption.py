"""Supervisors killed under their jobs, which are adopted as if nothing had been."""

from __future__ import annotations

from pathlib import Path

from ray_jobs import JobSubmissionClient
from tests.faults.adoption import Adoption
from tests.faults.common.modes import DENSE_JOBS, EACH_ITS_OWN, SHARED, Mode, each_its_own
from tests.faults.processes import titled
from tests.faults.supervisors import MANAGER, SUPERVISOR, wait_for_idle_supervisors
from tests.faults.table import rounds
from tests.faults.workload import OWN_CPUS

#: How many jobs there are, and how many of them are stopped.
JOBS = {EACH_ITS_OWN: (2, 1), SHARED: (DENSE_JOBS, 20)}


@rounds(2)
def test_jobs_of_a_killed_supervisor(
    client: JobSubmissionClient, supervision: str, mode: Mode, tmp_path: Path
) -> None:
    count, stopped = JOBS[supervision]
    idle = mode.idle - 1 if supervision == SHARED else mode.idle
    fault = f"{count} jobs' supervisors killed ({supervision})"
    with Adoption(fault, client, tmp_path / "gate", count) as adoption:
        assert len(adoption.supervisors()) == (1 if supervision == SHARED else count)
        # All that there are, so that another has to be started first.
        adoption.kill(titled(SUPERVISOR))
        adoption.check_stops(stopped)
        wait_for_idle_supervisors(idle)
        adoption.check_ends()
    adoption.report()


@each_its_own
@rounds(2)
def test_job_whose_own_supervisor_is_killed(client: JobSubmissionClient, tmp_path: Path) -> None:
    fault, gate = "a job's own supervisor killed", tmp_path / "gate"
    with Adoption(fault, client, gate, 2, entrypoint_num_cpus=OWN_CPUS) as both:
        both.kill_own_supervisors()
        both.check_stops(1)
        both.check_ends()
    both.report()


@rounds(2)
def test_jobs_that_end_while_nobody_watches(
    client: JobSubmissionClient, supervision: str, tmp_path: Path
) -> None:
    """The manager is killed too, so that they aren't adopted before they have ended."""
    count, _ = JOBS[supervision]
    fault = f"{count} jobs end while nobody watches ({supervision})"
    with Adoption(fault, client, tmp_path / "gate", count) as adoption:
        adoption.kill([*titled(MANAGER), *titled(SUPERVISOR)])
        adoption.check_ends()
    adoption.report()
