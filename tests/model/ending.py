"""What must be so once all faults are gone and everything has come to rest."""

from __future__ import annotations

from typing import Any

from ray_jobs.claims import KV_NAMESPACE
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobStatus
from ray_jobs.records import MIRROR_FIELDS, mirror_json
from ray_jobs.store import KEPT_EPOCHS, RECORD_PREFIX
from ray_jobs.supervisor.node import tells_end
from tests.model.judge import end_of, key_of
from tests.model.node import Keeper
from tests.model.world import World

ROUND_S = 35.0
MAX_ROUNDS = 12


def come_to_rest(world: World) -> None:
    """End all faults, let every job come to its end, and hold what must be so then."""
    world.tell("--- no more faults")
    world.disarm()
    world.kv_weather.set()
    world.call_weather.set()
    world.kv.resume()
    world.supervisors.quickest_start_s, world.supervisors.slowest_start_s = 0.0, 0.5
    for node in world.nodes:
        node.slowest_fork_s = 0.005
        node.starts_actors = True
    for zombie in world.zombies():
        zombie.process.kill()
    if not world.managers:
        return
    for number in range(MAX_ROUNDS):
        world.loop.run_for(ROUND_S)
        if number > 0:
            for keeper in world.running():
                check_may_run(world, keeper)
                keeper.exit(0)
        records = world.judge.records().values()
        if number > 1 and not world.calls and all(each.status.is_terminal() for each in records):
            break
    world.loop.run_for(ROUND_S)
    check_records(world)
    check_processes(world)
    check_replica(world)


def check_may_run(world: World, keeper: Keeper) -> None:
    """Hold that who was stopped long ago doesn't run any more."""
    stopped = [each.attempt for each in world.judge.records().values() if each.stop_requested]
    world.judge.claim(
        keeper.attempt not in stopped, "liveness", f"the stop of {keeper.attempt} isn't delivered"
    )


def check_records(world: World) -> None:
    judge = world.judge
    claim = judge.claim
    claim(not world.calls, "liveness", f"{len(world.calls)} calls have no answer")
    records = judge.records()
    for submission_id, record in records.items():
        claim(record.status.is_terminal(), "liveness", f"{submission_id} never ends: {record}")
        shown = world.kv.data.get((MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + submission_id))
        wanted = mirror_json(record, frozenset(MIRROR_FIELDS))
        claim(shown == wanted, "the mirror", f"{submission_id} is {record}, Ray is shown {shown!r}")
        facts = judge.facts(key_of(record))
        claim(
            facts.end is not None and end_of(facts.end) == end_of(record),
            "rule 3",
            f"{submission_id} has become {record}",
        )
        if facts.exit_codes and not facts.stop_asked and not facts.disturbed:
            status = JobStatus.FAILED if facts.exit_codes[0] else JobStatus.SUCCEEDED
            claim(
                (record.status, record.driver_exit_code) == (status, facts.exit_codes[0]),
                "rule 7",
                f"{submission_id} exited with {facts.exit_codes}, its record is {record}",
            )
    mirrored = {
        key.removeprefix(MIRROR_KEY_PREFIX)
        for space, key in world.kv.data
        if space == MIRROR_NAMESPACE
    }
    claim(mirrored == records.keys(), "the mirror", f"it has {mirrored}, there are {set(records)}")
    other = [
        key
        for space, key in world.kv.data
        if space == KV_NAMESPACE and not key.startswith(RECORD_PREFIX)
    ]
    claim(len(other) <= KEPT_EPOCHS + 1, "leaks", f"the KV has {other}")


def check_processes(world: World) -> None:
    claim = world.judge.claim
    keepers = [each.attempt for each in world.keepers()]
    claim(not keepers, "rule 7", f"keepers live: {keepers}")
    running = [each.attempt for each in world.running()]
    claim(not running, "rule 7", f"entrypoints run: {running}")
    assert world.manager is not None, "the manager isn't restarted"
    runner: Any = world.manager.instance._runner
    claim(not runner._leads, "leaks", f"jobs are led: {list(runner._leads)}")
    pool: Any = runner._services.pool
    members = [member.handle.actor.actor for member in pool._members]
    alive = world.supervisors.alive()
    # What one makes that was replaced and doesn't know it yet, nobody finds before the next start.
    replaced = {each.process for each in world.managers if each in world.replaced}
    strangers = [
        each.process for each in alive if each not in members and each.maker not in replaced
    ]
    claim(not strangers, "leaks", f"supervisors that nobody needs: {strangers}")
    dead = [actor.process for actor in members if actor not in alive]
    claim(not dead, "leaks", f"the pool has dead ones: {dead}")
    jobs = [member.jobs for member in pool._members]
    claim(not any(jobs), "leaks", f"the pool counts jobs: {jobs}")
    most = max(1, pool._settings.most_idle)
    claim(len(members) <= most, "leaks", f"{len(members)} supervisors are idle, {most} may be")
    claim(not pool._waiting, "leaks", f"{len(pool._waiting)} jobs wait for a supervisor")
    # A stop that comes again after the end leaves a name, nothing else.
    known = [
        attempt.id
        for actor in members
        for attempt in actor.instance._attempts.values()
        if attempt.known.is_set()
    ]
    # One that was replaced may have had an attempt adopted as well, and tells nobody.
    # Nor is a release that was lost told again, before the next manager.
    is_excused = bool(world.replaced) or world.call_weather.was_lossy
    claim(not known or is_excused, "leaks", f"supervisors keep reports: {known}")
    ended = [each for each, status in world.head.folders.items() if tells_end(status)]
    claim(not ended or is_excused, "leaks", f"folders of attempts that have ended: {ended}")


def check_replica(world: World) -> None:
    index = world.follower.replica.index
    keys = index.keys()
    shown = {each[1]: index.get(each[1]) for each in keys}
    records = world.judge.records()
    world.judge.claim(
        {name: job.status for name, job in shown.items() if job is not None}
        == {name: record.status for name, record in records.items()},
        "the replica",
        f"it shows {shown}, there are {records}",
    )
