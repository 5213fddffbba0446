"""What a running job costs that does nothing, and how soon one among many ends."""

from __future__ import annotations

from benchmarks.bench import Bench, Row, Stage
from benchmarks.figures import Figure
from benchmarks.processes import sleep_command
from benchmarks.rows.ending import dying, stopping

WINDOW_S = 30.0
QUICK_WINDOW_S = 10.0
#: An actor each: 60 MB.
JOBS = 20
DENSE_JOBS = 1000
QUICK_DENSE_JOBS = 200
#: So many jobs tell whether supervision is dense; a thousand actors would eat the machine.
TRIAL_JOBS = 16
MOST_SUPERVISORS = TRIAL_JOBS // 2


async def costs(bench: Bench) -> tuple[list[float], float]:
    """Return the control plane's use of cores, by window, and its memory in MB."""
    await bench.quiet()
    window_s = QUICK_WINDOW_S if bench.options.quick else WINDOW_S
    with bench.unprobed():
        cores = [await bench.cpu_cores(window_s) for _ in range(bench.repetitions(3, 2))]
        return cores, bench.processes.pss_mb()


async def start_sleepers(bench: Bench, first: int, count: int) -> list[str]:
    commands = [sleep_command(first + index) for index in range(count)]
    job_ids = await bench.api.submit_all(commands)
    await bench.api.until_all(job_ids, "RUNNING")
    return job_ids


async def stop_all(bench: Bench, job_ids: list[str]) -> None:
    for job_id in job_ids:
        await bench.api.stop(job_id)
    await bench.api.until_all(job_ids, "STOPPED", "FAILED")


def per_job(
    before: tuple[list[float], float], after: tuple[list[float], float], count: int, words: str
) -> list[Figure]:
    """Return what one of `count` running jobs costs, from the costs without and with them."""
    idle_cores = Figure.of("CPU of the control plane without jobs", "cores", before[0])
    cores = [(value - idle_cores.median) / count for value in after[0]]
    memory = (after[1] - before[1]) / count
    return [
        Figure.of(f"CPU of the control plane per running `sleep`, {words}", "cores", cores),
        Figure.of(f"memory per running `sleep`, {words}", "MB", memory),
        idle_cores,
        Figure.of("memory of the control plane without jobs", "MB", before[1]),
    ]


async def idle(bench: Bench) -> list[Figure]:
    before = await costs(bench)
    job_ids = await start_sleepers(bench, 0, JOBS)
    after = await costs(bench)
    await stop_all(bench, job_ids)
    return per_job(before, after, JOBS, f"{JOBS} of them")


async def dense(bench: Bench) -> list[Figure]:
    total = QUICK_DENSE_JOBS if bench.options.quick else DENSE_JOBS
    before = await costs(bench)
    job_ids = await start_sleepers(bench, 0, TRIAL_JOBS)
    supervisors = len(bench.processes.of_role("supervisors"))
    assert supervisors <= MOST_SUPERVISORS, (
        f"supervision isn't dense: {supervisors} supervisors for {TRIAL_JOBS} jobs"
    )
    job_ids += await start_sleepers(bench, TRIAL_JOBS, total - TRIAL_JOBS)
    after = await costs(bench)
    step = total // bench.repetitions(40, 40)
    stops = [await stopping(bench, job_ids[number]) for number in range(0, total, step)]
    ends = [await dying(bench, job_ids[number], number) for number in range(step // 2, total, step)]
    await stop_all(bench, job_ids)
    words = f"dense, {total:,} of them"
    return [
        *per_job(before, after, total, words),
        Figure.of(f"stop of one to STOPPED seen, {words}", "ms", stops),
        Figure.of(f"entrypoint of one killed to FAILED seen, {words}", "ms", ends),
    ]


ROWS = (
    Row("idle", "CPU and memory per running `sleep`", idle, Stage.QUIET),
    Row("dense", "the same for many in dense mode, and their ends", dense, Stage.DENSE, False),
)
