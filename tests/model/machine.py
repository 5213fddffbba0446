"""The state machine: what clients ask for and what goes wrong, in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.ending import come_to_rest
from tests.model.world import World

IDS = ("a", "b", "c", "d")
#: A job of the pool; of the pool with an environment; of its own, anywhere.
KINDS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "built": {"runtime_env": {"pip": ["x"]}},
    "own": {"entrypoint_num_cpus": 1.0},
}
#: What passes after a step: callbacks that run, or seconds.
pauses = st.one_of(
    st.integers(0, 60), st.sampled_from((0.001, 0.01, 0.1, 0.35, 1.0, 3.0)), st.just(0.02)
)
picks = st.integers(0, 7)
#: One way to the KV, in seconds. A manager writes within two of them after it has seen that it
#: isn't replaced, and its successor reads `store.SETTLING_S` (0.3 s) after its claim. Slower ways
#: are tried only while no manager dies (`slow_kv`): what a predecessor sends then may come after
#: that, and the KV can't tell (see the limits in docs/architecture.md). While the KV's server
#: itself is slow (`stall_kv`), the requests keep their order.
SLOWEST_S = 0.12


class Cluster(RuleBasedStateMachine):
    """Manager, store, supervisors and a replica under faults."""

    world: World

    @initialize(
        seed=st.integers(0, 2**32),
        warm=st.integers(0, 2),
        jobs_each=st.sampled_from((1, 1, 3)),
        retained=st.sampled_from((None, None, 1)),
    )
    def begin(self, seed: int, warm: int, jobs_each: int, retained: int | None) -> None:
        self.world = World(seed, warm, jobs_each, retained)
        self.pause(0.5)

    def pause(self, how_long: float) -> None:
        """Let some callbacks run (an int), or time pass (seconds); then look."""
        if isinstance(how_long, int):
            self.world.loop.run_steps(how_long, self.world.loop.time() + 1)
        else:
            self.world.loop.run_for(how_long)
        self.look()

    def look(self) -> None:
        self.world.judge.look()
        violations = self.world.judge.violations
        if violations:
            raise AssertionError("\n".join([*violations, "", *self.world.trace]))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if not self.world.judge.violations:
                come_to_rest(self.world)
                self.look()
        finally:
            self.world.close()

    # --- clients --------------------------------------------------------------------------------

    @rule(name=st.sampled_from(IDS), kind=st.sampled_from(list(KINDS)), pause=pauses)
    def submit(self, name: str, kind: str, pause: float) -> None:
        self.world.submit(name, KINDS[kind])
        self.pause(pause)

    @precondition(lambda self: self.world.submitting)
    @rule(pick=picks, pause=pauses)
    def submit_again(self, pick: int, pause: float) -> None:
        # One that comes again after its job was archived would make another job.
        facts = self.world.judge.facts
        waiting = [key for key in self.world.submitting if not facts(key).is_archived]
        if waiting:
            self.world.submit_again(waiting[pick % len(waiting)])
        self.pause(pause)

    @rule(name=st.sampled_from(IDS), pause=pauses)
    def stop(self, name: str, pause: float) -> None:
        self.world.stop(name)
        self.pause(pause)

    @rule(name=st.sampled_from(IDS), pause=pauses)
    def delete(self, name: str, pause: float) -> None:
        # A request that comes again after its job was deleted would make another job. No face
        # sends one again that it has an answer to, and what it sent a dead manager is gone.
        if not self.world.on_way[name]:
            self.world.delete((name, ""))
        self.pause(pause)

    # --- time, and what jobs do -----------------------------------------------------------------

    @rule(pause=pauses)
    def wait(self, pause: float) -> None:
        self.pause(pause)

    @rule()
    def wait_long(self) -> None:
        self.pause(12.0)

    @precondition(lambda self: self.world.running())
    @rule(pick=picks, code=st.sampled_from((0, 1, 137)), pause=pauses)
    def exit(self, pick: int, code: int, pause: float) -> None:
        running = self.world.running()
        running[pick % len(running)].exit(code)
        self.pause(pause)

    # --- faults ---------------------------------------------------------------------------------

    @precondition(lambda self: self.world.manager is not None)
    @rule(pause=pauses)
    def kill_manager(self, pause: float) -> None:
        manager = self.world.manager
        assert manager is not None
        manager.process.kill()
        self.pause(pause)

    @precondition(lambda self: self.world.manager is not None)
    @rule(pause=pauses)
    def replace_manager(self, pause: float) -> None:
        """A new manager begins while the old one lives on."""
        self.world.start_manager()
        self.pause(pause)

    @precondition(lambda self: self.world.supervisors.alive())
    @rule(pick=picks, pause=pauses)
    def kill_supervisor(self, pick: int, pause: float) -> None:
        alive = self.world.supervisors.alive()
        self.world.kill_supervisor(alive[pick % len(alive)])
        self.pause(pause)

    @rule(
        moment=st.sampled_from(("PENDING", "RUNNING", "begin", "stop", "told", "end")),
        victim=st.sampled_from(("manager", "supervisor", "both", "node")),
        pause=pauses,
    )
    def die_at(self, moment: str, victim: str, pause: float) -> None:
        self.world.set_trap(moment, victim)
        self.pause(pause)

    @precondition(lambda self: self.world.keepers())
    @rule(pick=picks, pause=pauses)
    def kill_keeper(self, pick: int, pause: float) -> None:
        keepers = self.world.keepers()
        self.world.tell(f"the keeper of {keepers[pick % len(keepers)].attempt} is killed")
        keepers[pick % len(keepers)].kill()
        self.pause(pause)

    @rule(is_head=st.sampled_from((False, False, True)), pause=pauses)
    def kill_node(self, is_head: bool, pause: float) -> None:
        for node in self.world.nodes:
            if node.is_alive and node.is_head == is_head:
                self.world.kill_node(node)
                break
        self.pause(pause)

    @rule(
        weather=st.sampled_from(
            (
                {},
                {"slowest_s": SLOWEST_S},
                {"lost": 0.3, "lost_answer": 0.3},
                {"slowest_s": SLOWEST_S, "lost_answer": 0.2},
            )
        ),
        pause=pauses,
    )
    def kv_weather(self, weather: dict[str, float], pause: float) -> None:
        self.world.tell(f"weather of the KV: {weather}")
        self.world.kv_weather.set(**weather)
        self.world.kv.resume()
        self.pause(pause)

    @precondition(lambda self: self.world.manager is not None and not self.world.zombies())
    @rule(slowest_s=st.sampled_from((0.5, 3.0)), seconds=st.sampled_from((0.1, 2.0, 9.0)))
    def slow_kv(self, slowest_s: float, seconds: float) -> None:
        """Requests overtake each other by seconds. No manager dies until they have arrived."""
        self.world.tell(f"requests to the KV take up to {slowest_s} s")
        self.world.disarm()
        self.world.kv_weather.set(slowest_s=slowest_s)
        self.pause(seconds)
        self.world.kv_weather.set()
        self.pause(slowest_s)

    @rule(seconds=st.sampled_from((0.05, 0.5, 4.0)), pause=pauses)
    def stall_kv(self, seconds: float, pause: float) -> None:
        self.world.stall_kv(seconds)
        self.pause(pause)

    @rule(is_head=st.booleans(), starts=st.booleans(), pause=pauses)
    def start_no_actors(self, is_head: bool, starts: bool, pause: float) -> None:
        """Ray can start no actor on a node any more, or can again."""
        for node in self.world.nodes:
            if node.is_alive and node.is_head == is_head:
                self.world.tell(f"actors {'start' if starts else 'do not start'} on {node.id}")
                node.starts_actors = starts
        self.pause(pause)

    @rule(
        weather=st.sampled_from(
            (
                {},
                {"slowest_s": 0.3},
                {"lost": 0.2, "lost_answer": 0.2},
                {"slowest_s": 0.1, "doubled": 0.5, "lost_answer": 0.1},
                {"slowest_transfer_s": 5.0},
                {"slowest_transfer_s": 1.0, "lost": 0.1, "lost_answer": 0.3},
            )
        ),
        fork_s=st.sampled_from((0.005, 0.005, 1.0)),
        start_s=st.sampled_from((0.5, 3.0, 20.0)),
        pause=pauses,
    )
    def call_weather(
        self, weather: dict[str, float], fork_s: float, start_s: float, pause: float
    ) -> None:
        self.world.tell(f"weather of calls: {weather}, forks take {fork_s}, starts {start_s}")
        self.world.call_weather.set(**weather)
        self.world.supervisors.slowest_start_s = start_s
        for node in self.world.nodes:
            node.slowest_fork_s = fork_s
        self.pause(pause)
