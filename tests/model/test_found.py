"""What the model has found once, in the fewest steps: each was a fault of the product."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from ray_jobs.models import JobStatus
from ray_jobs.records import JobRecord
from ray_jobs.supervisor import actor as supervisor_actor
from tests.model.ending import come_to_rest
from tests.model.judge import key_of
from tests.model.machine import KINDS
from tests.model.world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(seed=1, warm=1, jobs_each=1)
    for node in world.nodes:
        node.short_jobs = 0.0
        node.failing_starts = 0.0
    world.loop.run_for(1.0)
    yield world
    try:
        come_to_rest(world)
        assert not world.judge.violations, "\n".join([*world.judge.violations, *world.trace])
    finally:
        world.close()


def run_until_running(world: World, submission_id: str) -> JobRecord:
    """Run until a job is recorded as running, and no step more."""
    for _ in range(10_000):
        record = world.judge.record(submission_id)
        if record is not None and record.status is JobStatus.RUNNING:
            return record
        world.loop.run_steps(1, world.loop.time() + 10)
    raise AssertionError("it never runs")


def run_on_worker(world: World) -> JobRecord:
    """Have a job run on the node that isn't the head. Ray places it."""
    for number in range(10):
        world.submit(f"job-{number}", {"entrypoint_num_cpus": 1.0})
        record = run_until_running(world, f"job-{number}")
        if record.driver_node_id != world.head.id:
            world.loop.run_for(3.0)
            return record
    raise AssertionError("all are on the head")


def statuses(world: World) -> list[JobStatus]:
    """Return those of all jobs, by their ids."""
    return [record.status for _, record in sorted(world.judge.records().items())]


def kill_manager(world: World) -> None:
    assert world.manager is not None
    world.manager.process.kill()


def kill_supervisors_of(world: World, attempt: str) -> None:
    for actor in world.supervisors.alive():
        if actor.instance is not None and attempt in actor.instance._attempts:
            world.kill_supervisor(actor)


def test_an_order_that_comes_late_starts_nothing_that_was_given_up(world: World) -> None:
    """The supervisor dies when it has sent the order; the fork takes longer than the adoption."""
    world.head.slowest_fork_s = 30.0
    world.submit("a", {})
    run_until_running(world, "a")
    world.loop.run_for(0.05)
    for actor in world.supervisors.alive():
        if actor.instance is not None and actor.instance._attempts:
            world.kill_supervisor(actor)
    world.loop.run_for(3.0)
    # A new manager has the supervisors drop what isn't its record's attempt.
    kill_manager(world)
    world.loop.run_for(60.0)


def test_a_second_stop_is_not_answered_before_the_first_is_recorded(world: World) -> None:
    world.submit("a", {})
    run_until_running(world, "a")
    world.kv.stall()
    world.stop("a")
    world.loop.run_for(0.1)
    world.stop("a")
    world.loop.run_for(0.1)
    assert len(world.calls) == 2


def test_a_manager_hears_of_the_one_that_came_many_epochs_later(world: World) -> None:
    """One that fails again and again at its start claims an epoch each time."""
    first = world.manager
    assert first is not None
    for _ in range(8):
        world.start_manager()
        world.loop.run_for(0.4)
        kill_manager(world)
    world.start_manager()
    world.loop.run_for(120.0)
    assert not first.process.is_alive


def test_a_job_that_two_supervisors_adopted_is_counted_once(world: World) -> None:
    """A manager that was replaced has it adopted as well, before it knows."""
    world.submit("a", {})
    attempt = run_until_running(world, "a").attempt
    world.loop.run_for(12.0)
    world.start_manager()
    world.loop.run_for(12.0)
    for actor in world.supervisors.alive():  # each manager makes others, which obey it alone
        world.kill_supervisor(actor)
    world.loop.run_for(6.0)
    assert sum(attempt in each.instance._attempts for each in world.supervisors.alive()) == 2
    kill_manager(world)


def test_a_stop_that_was_only_recorded_is_delivered_by_the_next_manager(world: World) -> None:
    """The supervisor has had the attempt all along."""
    world.submit("a", {})
    attempt = run_until_running(world, "a").attempt
    world.loop.run_for(3.0)
    world.call_weather.set(lost=1.0)
    world.stop("a")
    world.loop.run_for(0.1)
    assert not world.calls
    kill_manager(world)
    world.call_weather.set()
    world.loop.run_for(12.0)
    assert attempt not in [keeper.attempt for keeper in world.running()]


def test_a_job_outlives_any_number_of_supervisors(world: World) -> None:
    world.submit("a", {})
    attempt = run_until_running(world, "a").attempt
    world.loop.run_for(3.0)
    for _ in range(50):
        kill_supervisors_of(world, attempt)
        world.loop.run_for(10.0)
    assert attempt in [keeper.attempt for keeper in world.running()]


@pytest.mark.parametrize("fields", [{}, {"entrypoint_num_cpus": 1.0}])
def test_a_supervisor_that_is_killed_for_memory_is_dead_like_others(
    world: World, fields: dict[str, float]
) -> None:
    """Ray says so by an exception that isn't one of dead actors."""
    world.supervisors.killed_for_memory = 1.0
    for each in world.supervisors.alive():
        world.kill_supervisor(each)
    world.loop.run_for(12.0)
    world.submit("a", fields)
    world.loop.run_for(0.01)
    for each in world.supervisors.alive():  # while the job is placed
        world.kill_supervisor(each)
    attempt = run_until_running(world, "a").attempt
    for _ in range(5):
        world.loop.run_for(12.0)
        kill_supervisors_of(world, attempt)
    assert attempt in [keeper.attempt for keeper in world.running()]
    assert statuses(world) == [JobStatus.RUNNING]


def test_a_job_that_is_given_up_is_ended_by_another_supervisor_if_its_own_is_silent(
    world: World,
) -> None:
    world.submit("a", {})
    attempt = run_until_running(world, "a").attempt
    world.loop.run_for(3.0)

    async def broken(*_: object) -> None:
        raise OSError("broken")

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    for each in world.supervisors.alive():
        if attempt in each.instance._attempts:
            each.instance.wait, each.instance.abandon = broken, silent
    kill_manager(world)  # the next one waits anew
    world.loop.run_for(60.0)
    assert attempt not in [keeper.attempt for keeper in world.running()]
    assert statuses(world) == [JobStatus.FAILED]
    world.judge.violations.clear()  # it knows of no reason to end such a job


def test_a_job_waits_for_an_adopter_as_long_as_its_node_lives(world: World) -> None:
    """Ray can't start one there. A stop that is asked for meanwhile is delivered afterwards."""
    record = run_on_worker(world)
    [node] = [each for each in world.nodes if each.id == record.driver_node_id]
    node.starts_actors = False
    kill_supervisors_of(world, record.attempt)
    world.loop.run_for(3600.0)
    world.stop(record.submission_id)
    world.loop.run_for(60.0)
    assert not world.calls
    assert record.attempt in [keeper.attempt for keeper in world.running()]
    node.starts_actors = True
    world.loop.run_for(30.0)
    ended = world.judge.record(record.submission_id)
    assert ended is not None
    assert ended.status is JobStatus.STOPPED


def test_a_job_without_an_adopter_ends_with_its_node(world: World) -> None:
    record = run_on_worker(world)
    [node] = [each for each in world.nodes if each.id == record.driver_node_id]
    node.starts_actors = False
    kill_supervisors_of(world, record.attempt)
    world.loop.run_for(600.0)
    world.kill_node(node)
    world.loop.run_for(30.0)
    ended = world.judge.record(record.submission_id)
    assert ended is not None
    assert (ended.status, ended.error_type) == (JobStatus.FAILED, "JOB_SUPERVISOR_ACTOR_DIED")


def test_a_job_whose_mirror_two_managers_did_not_write_is_not_deleted(world: World) -> None:
    """One dies between record and mirror of the beginning, the next one of the end."""
    world.kv_weather.slowest_s = 0.0
    deaths: list[str] = []

    def die(moment: str, attempt: str) -> None:
        if moment in ("PENDING", "end") and len(deaths) < 2 and world.manager:
            deaths.append(moment)
            world.manager.process.kill()

    world.judge.on_moment = die
    world.submit("a", {"entrypoint_num_cpus": 1.0})
    world.loop.run_for(0.01)
    world.stop("a")
    world.loop.run_for(30.0)
    assert deaths == ["PENDING", "end"]
    assert statuses(world) == [JobStatus.STOPPED]


def test_a_supervisor_that_the_next_manager_has_not_found_yet_ends_with_its_job(
    world: World,
) -> None:
    """The job is stopped just when the manager begins to lead it."""
    world.kv_weather.slowest_s = 0.0
    world.supervisors.slowest_start_s = 60.0
    world.submit("a", {"entrypoint_num_cpus": 1.0})
    world.loop.run_for(0.2)
    [made] = [actor for actor in world.supervisors.alive() if actor.instance is None]
    kill_manager(world)
    world.stop("a")
    world.loop.run_for(10.0)
    assert statuses(world) == [JobStatus.STOPPED]
    assert not made.process.is_alive


@pytest.mark.parametrize("with_manager", [False, True])
def test_the_folder_of_a_job_that_ended_just_before_its_supervisor_is_removed(
    world: World, with_manager: bool
) -> None:
    """A supervisor is told a moment later that an end has been recorded, and removes it then.

    Nobody knows of it who lives where the manager died too: the next one looks for such folders.
    """
    world.submit("a", {})
    attempt = run_until_running(world, "a").attempt
    world.loop.run_for(3.0)
    [keeper] = [each for each in world.running() if each.attempt == attempt]
    keeper.exit(0)
    world.loop.run_for(0.2)
    assert statuses(world) == [JobStatus.SUCCEEDED]
    if with_manager:
        kill_manager(world)
    kill_supervisors_of(world, attempt)
    world.loop.run_for(5.0)
    assert not [folder for folder in world.head.folders if folder.endswith(attempt)]


def test_the_folder_of_a_job_is_removed_whose_own_supervisor_dies_after_its_report(
    world: World,
) -> None:
    """It can't be told any more that the end is recorded."""
    world.submit("a", {"entrypoint_resources": {"node:__internal_head__": 0.001}})
    attempt = run_until_running(world, "a").attempt
    world.loop.run_for(3.0)
    [keeper] = [each for each in world.running() if each.attempt == attempt]
    facts = world.judge.facts(key_of(run_until_running(world, "a")))
    keeper.exit(0)
    run_until(world, lambda: bool(facts.told))
    kill_supervisors_of(world, attempt)
    world.loop.run_for(5.0)
    assert not [folder for folder in world.head.folders if folder.endswith(attempt)]


def run_until(world: World, holds: Callable[[], bool]) -> None:
    """Run until something holds, and no step more."""
    for _ in range(10_000):
        if holds():
            return
        world.loop.run_steps(1, world.loop.time() + 10)
    raise AssertionError("it never comes to that")


def test_a_job_starts_though_the_kv_fails_when_it_is_asked_for_its_agent(world: World) -> None:
    """Which is asked just before the record says that the job runs."""
    get, failures = world.kv.get, [ConnectionError("the KV is away")] * 3

    async def fail(namespace: bytes, key: str) -> bytes | None:
        if namespace == b"dashboard" and failures:
            raise failures.pop()
        return await get(namespace, key)

    world.kv.get = fail  # type: ignore[method-assign]
    world.submit("a", {})
    run_until_running(world, "a")
    assert not failures


def end_before_its_log_is_here(world: World, code: int) -> JobRecord:
    """Have a job of a worker end while its log is on the way. The manager knows how it ended."""
    record = run_on_worker(world)
    world.call_weather.set(slowest_transfer_s=60.0)
    [keeper] = [each for each in world.running() if each.attempt == record.attempt]
    keeper.exit(code)
    facts = world.judge.facts(key_of(record))
    run_until(world, lambda: bool(facts.told))
    assert world.judge.record(record.submission_id) == record
    return record


@pytest.mark.parametrize(("code", "status"), [(0, JobStatus.SUCCEEDED), (3, JobStatus.FAILED)])
def test_a_job_that_ended_before_its_node_has_its_own_end(
    world: World, code: int, status: JobStatus
) -> None:
    record = end_before_its_log_is_here(world, code)
    [node] = [each for each in world.nodes if each.id == record.driver_node_id]
    world.kill_node(node)
    world.loop.run_for(30.0)
    ended = world.judge.record(record.submission_id)
    assert ended is not None
    assert (ended.status, ended.driver_exit_code) == (status, code)
    assert ended.log_may_be_cut_off


def test_the_log_of_a_job_that_ended_before_its_supervisor_is_copied_by_another(
    world: World,
) -> None:
    record = end_before_its_log_is_here(world, 0)
    world.call_weather.set()
    kill_supervisors_of(world, record.attempt)
    world.loop.run_for(30.0)
    ended = world.judge.record(record.submission_id)
    assert ended is not None
    assert (ended.status, ended.log_may_be_cut_off) == (JobStatus.SUCCEEDED, False)
    [log] = [data for path, data in world.head.logs.items() if record.submission_id in path]
    assert log.endswith(b"ended\n")


def test_a_job_runs_on_though_pieces_of_its_log_are_lost_on_the_way(world: World) -> None:
    """Of an answer that is too large for a call, the object store may lose the object."""
    record = run_on_worker(world)
    world.call_weather.set(lost_answer=0.9)
    for _ in range(10):
        world.head.write_log("/other", b"x")
        for node in world.nodes:
            node.write_log(f"/model/logs/job-driver-{record.submission_id}.log", b"more\n")
        world.loop.run_for(5.0)
    world.call_weather.set()
    assert record.attempt in [keeper.attempt for keeper in world.running()]
    assert world.judge.record(record.submission_id) == record


@pytest.mark.parametrize("kind", ["pooled", "own"])
def test_a_job_waits_for_a_gcs_that_is_away(world: World, kind: str) -> None:
    """While its supervisor is looked for, made, or ended."""
    world.submit("a", KINDS[kind])
    run_until_running(world, "a")
    world.loop.run_for(3.0)
    [keeper] = world.running()
    world.supervisors.is_gcs_away = True
    keeper.exit(0)
    world.submit("b", KINDS["own"])
    world.loop.run_for(60.0)
    kill_manager(world)
    world.loop.run_for(60.0)
    waiting = world.judge.record("b")
    assert waiting is not None
    assert waiting.status is JobStatus.PENDING
    world.supervisors.is_gcs_away = False
    run_until_running(world, "b")


def test_a_stop_that_the_supervisor_fails_to_take_comes_again(world: World) -> None:
    world.submit("a", {})
    record = run_until_running(world, "a")
    world.loop.run_for(3.0)
    [supervisor] = [
        each for each in world.supervisors.alive() if record.attempt in each.instance._attempts
    ]
    stop, failures = supervisor.instance.stop_attempt, [OSError("full")] * 8

    async def fail(epoch: int, attempt: str) -> None:
        if failures:
            raise failures.pop()
        await stop(epoch, attempt)

    supervisor.instance.stop_attempt = fail
    world.stop("a")
    world.loop.run_for(60.0)
    assert not failures
    ended = world.judge.record("a")
    assert ended is not None
    assert ended.status is JobStatus.STOPPED


def test_a_supervisor_whose_creation_was_not_answered_is_not_left_behind(world: World) -> None:
    """The GCS has it, and says only to who asks again that its name is taken."""
    world.supervisors.loses_answers = True
    for each in world.supervisors.alive():
        world.kill_supervisor(each)
    world.loop.run_for(5.0)
    world.supervisors.loses_answers = False
    world.submit("a", {})
    run_until_running(world, "a")


def record_slowly(world: World) -> None:
    """Have each write of a job that runs take a second, which is long for an order."""
    put = world.kv.put

    async def put_slowly(namespace: bytes, key: str, value: bytes, overwrite: bool = True) -> bool:
        if b'"RUNNING"' in value:
            await asyncio.sleep(1.0)
        return await put(namespace, key, value, overwrite)

    world.kv.put = put_slowly  # type: ignore[method-assign]


def test_an_order_to_start_tells_of_no_stop_that_is_not_recorded(world: World) -> None:
    """It is asked for while the record that the job runs is on its way."""
    record_slowly(world)
    world.submit("a", {})
    world.loop.run_for(0.5)
    world.stop("a")
    world.loop.run_for(10.0)
    assert statuses(world) == [JobStatus.STOPPED]


def test_an_adoption_tells_of_no_stop_that_is_not_recorded(world: World) -> None:
    """The job is stopped just when the next manager begins to lead it."""
    world.submit("a", {})
    run_until_running(world, "a")
    world.loop.run_for(3.0)
    record_slowly(world)
    kill_manager(world)
    world.stop("a")
    world.loop.run_for(10.0)
    assert statuses(world) == [JobStatus.STOPPED]


def test_a_new_manager_waits_for_no_supervisor_that_does_not_live_yet(world: World) -> None:
    """Some of the pool are being started, for two jobs, when the manager dies."""
    supervisors = world.supervisors
    supervisors.quickest_start_s = supervisors.slowest_start_s = 60.0
    for submission_id in ("a", "b", "c"):
        world.submit(submission_id, {})
        world.loop.run_for(2.0)
    coming = [each for each in supervisors.alive() if each.instance is None]
    assert coming
    kill_manager(world)
    world.stop("a")
    world.loop.run_for(3.0)  # until Ray has started another, and it has begun
    assert not world.calls
    # One gets the supervisor of the job that was stopped.
    world.loop.run_for(5.0)
    assert [each.instance for each in coming] == [None] * len(coming)
    assert set(statuses(world)) == {JobStatus.STOPPED, JobStatus.RUNNING, JobStatus.PENDING}
    world.loop.run_for(125.0)
    for keeper in world.running():
        keeper.exit(0)
    world.loop.run_for(3.0)
    assert statuses(world) == [JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.SUCCEEDED]


@pytest.mark.parametrize("request_fields", [{}, {"entrypoint_num_cpus": 1.0}])
def test_a_job_that_is_given_up_is_not_begun_again(
    world: World, request_fields: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up for an error; the manager dies before that is recorded."""

    def fail(path: str) -> str:
        raise OSError(5, "Input/output error")

    world.submit("a", request_fields)
    run_until_running(world, "a")
    world.loop.run_for(3.0)
    [keeper] = world.running()
    with monkeypatch.context() as patched:
        patched.setattr(supervisor_actor, "last_lines", fail)
        world.kv.stall()
        keeper.exit(3)
        world.loop.run_for(2.0)
        kill_manager(world)
        world.kv.resume()
    world.loop.run_for(30.0)
    record = world.judge.record("a")
    assert record is not None
    assert (record.status, record.driver_exit_code) == (JobStatus.FAILED, 3)
