"""A cluster in memory: the real manager and supervisors, on a model of everything below them."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, deque
from typing import Any

import msgspec
from ray.exceptions import ActorUnavailableError, RayError
from ray_jobs.dashboard_module.follower import Follower

from ray_jobs.errors import ServerNotReady
from ray_jobs.manager.actor import JobManager
from ray_jobs.manager.environments import AgentUnreachable
from ray_jobs.models import SubmitRequest
from ray_jobs.records import (
    MIRROR_FIELDS,
    JobRecord,
    ManagerReply,
    decode_batch,
    decode_reply,
)
from ray_jobs.store import KvStore
from ray_jobs.supervisor.actor import JobSupervisor
from tests.model.actors import Actor, Context, Handle, Supervisors
from tests.model.judge import Judge, Key
from tests.model.kv import ModelKv
from tests.model.loop import EPOCH_S, NOBODYS, Process, VirtualLoop
from tests.model.node import Keeper, Node
from tests.model.surroundings import surroundings
from tests.model.weather import Weather

#: How long a client waits until it asks again, where the manager was lost.
AGAIN_S = 0.05
TRACE_LINES = 400
#: How many of the writes into the archive fail, before they are there or after it.
FAILED_WRITES = 0.1
#: Of the hexadecimal ids that Ray gives to nodes.
NODE_ID_DIGITS = 56


class Agent:
    """Ray's agent that builds environments."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.users = 0

    async def build(self, runtime_env: dict[str, Any], log_files: list[str]) -> dict[str, Any]:
        await asyncio.sleep(self._world.rng.uniform(0, 1))
        self._meet_weather()
        self.users += 1
        return {"env_vars": {}, "command_prefix": []}

    async def release(self, runtime_env: dict[str, Any]) -> None:
        self._meet_weather()
        self.users -= 1

    def _meet_weather(self) -> None:
        weather = self._world.call_weather
        if weather.happens(weather.lost):
            raise AgentUnreachable("lost")


class ModelArchive:
    """The archive of finished jobs, without their logs. It fails now and then, as disks do."""

    def __init__(self, world: World) -> None:
        self._world = world

    def write(self, name: str, data: bytes) -> None:
        self._fail()
        self._world.judge.archives(data)
        self._fail()

    def _fail(self) -> None:
        if self._world.rng.random() < FAILED_WRITES:
            raise OSError("the archive is away")


class World:
    """See the module. All that is random comes from `seed`.

    Args:
        retained: So many finished jobs are kept, others are archived. None: all are kept.
    """

    def __init__(self, seed: int, warm: int, jobs_each: int, retained: int | None = None) -> None:
        self.rng = random.Random(seed)
        # It has what is used here of a loop.
        self.loop = VirtualLoop(self.rng)  # type: ignore[abstract]
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.judge = Judge(self.tell)
        self.kv_weather = Weather(self.rng)
        self.call_weather = Weather(self.rng)
        self.kv = ModelKv(self.kv_weather, self.judge)
        self.judge.data = self.kv.data
        # The GCS answers for both.
        self.supervisors = Supervisors(
            JobSupervisor, self.call_weather, self.kv_weather, self.loop, self.rng
        )
        self.judge.on_moment = self._moment
        #: What dies at the next moment of a kind.
        self._traps: dict[str, str] = {}
        self.supervisors.on_loss = self.judge.supervisor_died
        self.supervisors.on_told = self.judge.is_told
        self.supervisors.on_stale_order = lambda what: self.judge.claim(
            False, "rule 1", f"a supervisor obeys {what}"
        )
        self.context = Context(lambda process: self._handles[process])
        self.agent = Agent(self)
        self.archive = ModelArchive(self)
        self._handles: dict[Process, Handle] = {}
        self._numbers = itertools.count(1)
        self.nodes: list[Node] = self.supervisors.nodes
        self.judge.nodes = self.nodes
        self.head = self.add_node(is_head=True)
        self.add_node()
        #: The newest first; all but that one have been replaced, and may not know it.
        self.managers: list[Actor] = []
        #: Those that lived on when their successors began.
        self.replaced: list[Actor] = []
        self._manager_came = asyncio.Event()
        self._restart: asyncio.TimerHandle | None = None
        self.keys: dict[str, list[str]] = {}
        self.calls: set[asyncio.Task[None]] = set()
        #: Requests without an answer; and those on their way, with what is sent again of one.
        self.submitting: dict[Key, bytes] = {}
        self.on_way: Counter[str] = Counter()
        environ = {
            "RAY_JOBS_WARM_SUPERVISORS": str(warm),
            "RAY_JOBS_SUPERVISION": "dense" if jobs_each > 1 else "",
            "RAY_JOBS_DENSE_JOBS": str(jobs_each),
            "RAY_JOBS_RETAIN_JOBS": "" if retained is None else str(retained),
        }
        self._surroundings = surroundings(self, environ)
        self._surroundings.__enter__()
        face = Face(self)
        self._client = Process("client", None)
        self.follower = Follower(face, face, lambda submission_id: None)
        self._in_client(self.follower.attach(create=True))

    def tell(self, line: str) -> None:
        self.trace.append(f"{self.loop.time():9.3f} {line}")

    def close(self) -> None:
        """End everything."""
        try:
            self._in_client(self.follower.close())
            self.loop.run_steps(100, self.loop.time())
            self.loop.close()
        finally:
            self._surroundings.__exit__(None, None, None)

    # --- nodes ----------------------------------------------------------------------------------

    def add_node(self, is_head: bool = False) -> Node:
        node = Node(
            f"{next(self._numbers):0{NODE_ID_DIGITS}x}",
            self.loop,
            self.rng,
            self.judge,
            is_head=is_head,
            now_ms=lambda: int((EPOCH_S + self.loop.time()) * 1000),
        )
        self.nodes.append(node)
        return node

    def kill_node(self, node: Node) -> None:
        """A node ends, with all that is on it. A new one comes in its place."""
        self.tell(f"{node.id} dies")
        node.die()
        processes = [actor.process for actor in self.supervisors.alive()]
        processes += [actor.process for actor in self.managers if actor.process.is_alive]
        for process in processes:
            if process.node is node:
                if node.is_head:  # those go before another head comes
                    process.kill()
                    continue
                delay_s = self.rng.uniform(0, 0.1)
                self.loop.call_later(delay_s, process.kill, context=NOBODYS.copy())
        fresh = self.add_node(is_head=node.is_head)
        if node.is_head:
            self.head = fresh

    def keepers(self) -> list[Keeper]:
        return [each for node in self.nodes for each in node.keepers if each.is_alive]

    def running(self) -> list[Keeper]:
        return [each for node in self.nodes for each in node.keepers if each.entrypoint_runs]

    def stall_kv(self, seconds: float) -> None:
        """The KV's server does nothing for a while."""
        self.tell("the KV stalls")
        self.kv.stall()
        self.loop.call_later(seconds, self.kv.resume, context=NOBODYS.copy())

    # --- the manager ----------------------------------------------------------------------------

    @property
    def manager(self) -> Actor | None:
        if self.managers and self.managers[0].process.is_alive:
            return self.managers[0]
        return None

    def start_manager(self) -> None:
        """A manager begins, though there may be one."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        process = Process(f"manager {len(self.managers) + 1}", self.head)
        self.tell(f"{process} starts")
        # Ray repeats what is lost of a manager's calls: nothing but its death is seen of it.
        weather = Weather(self.rng)
        weather.slowest_s = 0.005
        actor = Actor(process, JobManager, weather, self.loop)
        self._handles[process] = Handle(actor)
        process.on_death.append(lambda: self._manager_died(actor))
        actor.on_answer = self._judge_answer
        if self.manager is not None:
            self.replaced.append(self.manager)
        self.managers.insert(0, actor)
        actor.start()
        came, self._manager_came = self._manager_came, asyncio.Event()
        came.set()

    def _manager_died(self, actor: Actor) -> None:
        self.tell(f"{actor.process} dies")
        if actor is self.managers[0] and self._restart is None:
            self._restart = self.loop.call_later(
                self.rng.uniform(0, 1.5), self.start_manager, context=NOBODYS.copy()
            )

    def kill_supervisor(self, actor: Actor) -> None:
        self.tell(f"{actor.process} is killed")
        actor.process.kill()

    def zombies(self) -> list[Actor]:
        return [actor for actor in self.managers[1:] if actor.process.is_alive]

    # --- deaths at the worst moment -------------------------------------------------------------

    def set_trap(self, moment: str, victim: str) -> None:
        """Have the manager, a job's supervisor, or its worker node die when it comes to a point."""
        self.tell(f"the {victim} will die at the next {moment}")
        self._traps[moment] = victim

    def disarm(self) -> None:
        self._traps.clear()

    def _moment(self, moment: str, attempt: str) -> None:
        victim = self._traps.pop(moment, None)
        if victim is not None:
            delay_s = 0.0 if moment == "stop" else self.rng.choice((0.0, 0.001, 0.02))
            self.loop.call_later(delay_s, self._kill, victim, attempt, context=NOBODYS.copy())

    def _kill(self, victim: str, attempt: str) -> None:
        if victim == "node":
            self._kill_node_of(attempt)
            return
        if victim != "supervisor" and self.manager is not None:
            self.manager.process.kill()
        if victim != "manager":
            for actor in self.supervisors.alive():
                if actor.instance is not None and attempt in actor.instance._attempts:
                    self.kill_supervisor(actor)

    def _kill_node_of(self, attempt: str) -> None:
        for node in list(self.nodes):
            has_it = any(keeper.attempt == attempt for keeper in node.keepers)
            if has_it and node.is_alive and not node.is_head:
                self.kill_node(node)

    # --- clients --------------------------------------------------------------------------------

    def submit(self, submission_id: str, fields: dict[str, Any]) -> None:
        """A client submits a job."""
        key = f"key{next(self._numbers)}"
        request = SubmitRequest(entrypoint="true", submission_id=submission_id, **fields)
        self.keys.setdefault(submission_id, []).append(key)
        self.submitting[submission_id, key] = msgspec.json.encode(request)
        self.submit_again((submission_id, key))

    def submit_again(self, key: Key) -> None:
        """A request is sent, or sent again before it was answered."""
        self.on_way[key[0]] += 1
        self._in_client(self._submit(key, self.submitting[key]))

    def stop(self, submission_id: str) -> None:
        self._in_client(self._stop(submission_id))

    def delete(self, key: Key) -> None:
        self._in_client(self._delete(key))

    def _in_client(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine, context=self._client.context)
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)

    async def _submit(self, key: Key, request: bytes) -> None:
        self.tell(f"submit {key}")
        reply, by = await self.ask("submit", request, key[1])
        self.on_way[key[0]] -= 1
        self.tell(f"submit {key} -> {reply.error or reply.value} by {by}")
        self.submitting.pop(key, None)

    async def _stop(self, submission_id: str) -> None:
        self.tell(f"stop {submission_id}")
        key = self.judge.known(submission_id)
        with self.judge.stopping(submission_id):
            reply, by = await self.ask("stop", submission_id)
        self.judge.answers_for(key, reply)
        self.tell(f"stop {submission_id} -> {reply.error or reply.value} by {by}")

    async def _delete(self, key: Key) -> None:
        self.tell(f"delete {key}")
        with self.judge.deleting(key[0]):
            reply, by = await self.ask("delete", key[0])
        self.tell(f"delete {key} -> {reply.error or reply.value} by {by}")

    async def ask(self, method: str, *args: Any) -> tuple[ManagerReply, Process]:
        data, process = await self.ask_manager(method, *args)
        reply = decode_reply(data)
        if reply.batch is not None:
            self.follower.apply_early(reply.batch)
        return reply, process

    async def ask_manager(self, method: str, *args: Any) -> tuple[bytes, Process]:
        """Call the manager, as often as it dies; one that was replaced may be asked as well."""
        while True:
            alive = [actor for actor in self.managers if actor.process.is_alive]
            if not alive:
                await self._manager_came.wait()
                continue
            actor = self.rng.choice(alive)
            try:
                return await self._called(actor, method, *args), actor.process
            except ActorUnavailableError:
                raise AssertionError("unreachable") from None
            except RayError as error:
                if getattr(error, "cause", None) is not None:
                    self.judge.claim(False, "an error", f"{method} raises {error.cause!r}")
                    raise
            await asyncio.sleep(AGAIN_S)

    async def _called(self, actor: Actor, method: str, *args: Any) -> bytes:
        data: bytes = await actor.call(method, *args)
        return data

    def _judge_answer(self, method: str, args: tuple[Any, ...], data: Any) -> None:
        """The manager has given an answer, which is on its way."""
        if method == "changes":
            self.judge.publishes(decode_batch(data))
        elif method in ("submit", "stop", "delete"):
            reply = decode_reply(data)
            if reply.batch is not None:
                self.judge.publishes(reply.batch)
            if method == "submit":
                submission_id = msgspec.json.decode(args[0], type=SubmitRequest).submission_id
                assert submission_id is not None
                is_only = len(self.keys[submission_id]) == 1
                self.judge.answers_submit((submission_id, args[1]), reply, is_only)
            elif method == "stop":
                self.judge.answers_stop(args[0], reply)
            else:
                self.judge.answers_delete(args[0], reply)


class Face:
    """The ports of the HTTP face."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def attach(self, create: bool) -> bool:
        if create and not self._world.managers:
            self._world.start_manager()
        return bool(self._world.managers)

    async def changes(self, epoch: int, since: int, timeout_s: float) -> bytes:
        data, _ = await self._world.ask_manager("changes", epoch, since, timeout_s)
        return data

    async def submit(self, request_json: bytes, request_key: str) -> bytes:
        raise ServerNotReady("Clients of the model submit otherwise.")

    async def stop(self, submission_id: str) -> bytes:
        raise ServerNotReady("Clients of the model stop otherwise.")

    async def delete(self, submission_id: str) -> bytes:
        raise ServerNotReady("Clients of the model delete otherwise.")

    async def load(self) -> list[JobRecord]:
        return await KvStore(self._world.kv, frozenset(MIRROR_FIELDS)).load()
