"""Actors in memory, called as Ray's are: each is a process that may die at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayTaskError,
)

from ray_jobs import _ray
from tests.model.loop import NOBODYS, PROCESS, Process
from tests.model.node import Node
from tests.model.weather import Weather

#: What a supervisor answers through its channel too, so that it may be asked twice.
CHANNEL_CALLS = ("run", "adopt", "wait", "stop_attempt", "abandon", "release")
#: What a supervisor does only for a manager that wasn't replaced; the epoch comes first.
ORDERS = ("describe", "run", "adopt", "stop_attempt", "abandon")
#: What gives a supervisor an attempt.
GIVING = ("run", "adopt")
#: What tells how an attempt ended.
REPORTING = ("run", "wait")
#: Answers that may be too large for a call.
LARGE = ("read_log",)
#: Ray tells of a death, and frees a name, within so many seconds.
DEATH_NEWS_S = 0.05
NAME_S = 0.3


class Actor:
    """A process with an instance in it, and the calls that it has not answered."""

    def __init__(
        self,
        process: Process,
        make: Callable[[], Any],
        weather: Weather,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.process = process
        self.instance: Any = None
        self._make = make
        self._weather = weather
        self._loop = loop
        #: In the order of the calls, so that what is drawn at random is the same each time.
        self._pending: dict[asyncio.Future[Any], str] = {}
        self._early: list[Callable[[], None]] = []
        self.has_channel = False
        #: Who made it.
        self.maker = PROCESS.get(None)
        self.death: Exception = ActorDiedError()
        #: The latest epoch that has called.
        self._epoch = 0
        #: Hears of an order of a replaced manager that was obeyed.
        self.on_stale_order: Callable[[str], None] = lambda what: None
        #: Hears each answer as it is given: method, arguments, answer.
        self.on_answer: Callable[[str, tuple[Any, ...], Any], None] = lambda *_: None
        #: Hears each report of an end as it comes to a process: that one, and the status.
        self.on_told: Callable[[Process | None, Any], None] = lambda *_: None
        #: The job that it was made for alone, and the attempts that it was given.
        self.job: str | None = None
        self.given: dict[str, None] = {}
        #: Hears of its death, with the attempts that it was given; of those that it is given dead.
        self.on_loss: Callable[[str | None, Iterable[str]], None] = lambda *_: None
        process.on_death.append(self._died)

    def start(self) -> None:
        """It comes to life."""
        if self.process.is_alive and self.instance is None:
            self.instance = self.process.context.run(self._make)
            early, self._early = self._early, []
            for call in early:
                call()

    def call(self, method: str, *args: Any) -> asyncio.Future[Any]:
        answer = self._loop.create_future()
        self._pending[answer] = method
        if method in GIVING:
            self._give(args[1]["attempt"])
        weather = self._weather
        if self.has_channel and method in CHANNEL_CALLS and weather.happens(weather.doubled):
            # The channel breaks: the call comes, and then again as an actor's.
            self._send(method, args, self._loop.create_future(), is_lost=False)
        self._send(method, args, answer, is_lost=weather.happens(weather.lost))
        return answer

    def _give(self, attempt: str) -> None:
        if attempt not in self.given:
            self.given[attempt] = None
            if not self.process.is_alive and self.job is None:
                self.on_loss(None, [attempt])

    def _send(
        self, method: str, args: tuple[Any, ...], answer: asyncio.Future[Any], is_lost: bool
    ) -> None:
        loses_answer = self._weather.happens(self._weather.lost_answer)
        is_order = method in ORDERS
        caller = PROCESS.get(None)
        later_epoch: int | None = None

        def arrive() -> None:
            nonlocal later_epoch
            if not self.process.is_alive:
                self._answer_later(answer, self.death)
            elif self.instance is None:
                self._early.append(arrive)
            elif is_lost:
                self._answer_later(answer, self._lost(OutOfDiskError("of the arguments")))
            else:
                if is_order and args[0] < self._epoch:
                    later_epoch = self._epoch
                elif is_order:
                    self._epoch = args[0]
                run = getattr(self.instance, method)
                task = self.process.context.run(self._loop.create_task, run(*args))
                task.add_done_callback(done, context=NOBODYS.copy())

        def done(task: asyncio.Task[Any]) -> None:
            # One that ended itself in the midst of a call gives no answer.
            if task.cancelled() or not self.process.is_alive:
                return
            error = task.exception()
            if error is None and later_epoch is not None:
                self.on_stale_order(f"{method} of epoch {args[0]}, after one of {later_epoch}")
            if error is None:
                self.on_answer(method, args, task.result())
            if error is not None:
                self._answer_later(answer, RayTaskError(method, "", error))
            elif loses_answer:
                self._answer_later(answer, self._lost(ObjectFetchTimedOutError("", "", "")))
            else:
                delay_s = self._weather.way_s()
                if method in LARGE:
                    delay_s += self._weather.transfer_s()
                self._loop.call_later(
                    delay_s, self._tell, answer, caller, task.result(), context=NOBODYS.copy()
                )

        self._loop.call_later(self._weather.way_s(), arrive, context=NOBODYS.copy())

    def _lost(self, other: Exception) -> Exception:
        """Return what Ray raises of a call, or an answer, that was lost."""
        return self._weather.rng.choice((ActorUnavailableError("lost", None), other))

    def _tell(self, answer: asyncio.Future[Any], caller: Process | None, result: Any) -> None:
        if self._pending.get(answer) in REPORTING and not answer.done():
            self.on_told(caller, result)
        self._answer(answer, result)

    def _answer_later(self, answer: asyncio.Future[Any], error: Exception) -> None:
        self._loop.call_later(
            self._weather.way_s(), self._answer, answer, error, context=NOBODYS.copy()
        )

    def _answer(self, answer: asyncio.Future[Any], result: Any) -> None:
        self._pending.pop(answer, None)
        if answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def _died(self) -> None:
        self.on_loss(self.job, list(self.given))
        for answer, method in list(self._pending.items()):
            delay_s = self._weather.rng.uniform(0, DEATH_NEWS_S)
            error = self.death
            node = self.process.node
            if method in LARGE and node and not node.is_alive and self._weather.happens(0.5):
                error = ObjectLostError("", "", "")  # the next call is told of the death
            self._loop.call_later(delay_s, self._answer, answer, error, context=NOBODYS.copy())


class Handle:
    """An actor's handle: `handle.method.remote(...)`."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return _Method(self.actor, name)


def actor_id(handle: Handle) -> str:
    return handle.actor.process.name


class _Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return self._actor.call(self._name, *args)


class _Creation:
    """An actor's class with options: `remote(...)` makes the actor."""

    def __init__(self, make: Callable[[tuple[Any, ...]], Handle]) -> None:
        self._make = make

    def remote(self, *args: Any) -> Handle:
        return self._make(args)


class Supervisors:
    """All supervisor actors of the cluster, as Ray makes, names, finds and ends them."""

    def __init__(
        self,
        make: Callable[..., Any],
        weather: Weather,
        gcs_weather: Weather,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
    ) -> None:
        self._make = make
        self._weather = weather
        self._gcs_weather = gcs_weather
        self._loop = loop
        self._rng = rng
        self._named: dict[tuple[str, str], Handle] = {}
        self._count = 0
        self.all: list[Actor] = []
        self.nodes: list[Node] = []
        #: A new one takes so long to come to life, at least and at most.
        self.quickest_start_s = 0.0
        self.slowest_start_s = 0.5
        #: Whether no call for an actor comes to the GCS; whether none is answered.
        self.is_gcs_away = False
        self.loses_answers = False
        #: Of how many Ray says, once they are dead, that they were killed for memory.
        self.killed_for_memory = 0.3
        #: Of each of them, as those of `Actor`.
        self.on_stale_order: Callable[[str], None] = lambda what: None
        self.on_told: Callable[[Process | None, Any], None] = lambda *_: None
        self.on_loss: Callable[[str | None, Iterable[str]], None] = lambda *_: None

    def alive(self) -> list[Actor]:
        return [actor for actor in self.all if actor.process.is_alive]

    def names(self) -> list[str]:
        return [name for _, name in self._named]

    # --- as `ray`, for the manager --------------------------------------------------------------

    def options(self, **options: Any) -> _Creation:
        """As of an actor's class."""
        return _Creation(functools.partial(self._create, options))

    def get_actor(self, name: str, namespace: str) -> Handle:
        with self._asking_gcs():
            handle = self._named.get((namespace, name))
        if handle is None:
            raise ValueError(f"Failed to look up actor {name!r}")
        return handle

    def kill(self, handle: Handle, no_restart: bool = True) -> None:
        with self._asking_gcs():
            handle.actor.process.kill()

    def list_named_actors(self, all_namespaces: bool) -> list[dict[str, str]]:
        with self._asking_gcs():
            return [{"namespace": space, "name": name} for space, name in self._named]

    async def unborn_actors(self) -> set[str]:
        with self._asking_gcs():
            found = {
                actor_id(handle)
                for handle in self._named.values()
                if handle.actor.process.is_alive and handle.actor.instance is None
            }
        await asyncio.sleep(self._gcs_weather.way_s())
        return found

    # --- inside ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking_gcs(self) -> Iterator[None]:
        """Ask the GCS for what the context does: it may be away before that, or after it."""
        weather = self._gcs_weather
        if self.is_gcs_away or weather.happens(weather.lost):
            raise GetTimeoutError("the GCS is away")
        yield
        if self.loses_answers or weather.happens(weather.lost_answer):
            raise GetTimeoutError("the GCS is away")

    def _create(self, options: dict[str, Any], args: tuple[Any, ...]) -> Handle:
        with self._asking_gcs():
            return self._created(options, args)

    def _created(self, options: dict[str, Any], args: tuple[Any, ...]) -> Handle:
        key = (options["namespace"], options["name"])
        if key in self._named:
            raise ActorAlreadyExistsError(f"The name {options['name']} is already taken")
        self._count += 1
        node = self._place(options)
        process = Process(f"supervisor {self._count}", node)
        actor = Actor(process, lambda: self._make(*args), self._weather, self._loop)
        actor.has_channel = options["namespace"] == _ray.NAMESPACE  # as those of the pool
        actor.on_stale_order = self.on_stale_order
        actor.on_told = self.on_told
        actor.on_loss = self.on_loss
        if options["namespace"] == _ray.SUPERVISOR_NAMESPACE:
            actor.job = options["name"].removeprefix(_ray.SUPERVISOR_NAME_PREFIX)
        handle = self._named[key] = Handle(actor)
        self.all.append(actor)
        process.on_death.append(lambda: self._free(key, handle))
        if self._rng.random() < self.killed_for_memory:
            actor.death = OutOfMemoryError("The node has too little memory.")
        if node is None:
            actor.death = ActorUnschedulableError("The node is gone.")
            process.kill()
        else:
            delay_s = self._rng.uniform(self.quickest_start_s, self.slowest_start_s)
            start = functools.partial(self._start, actor, node)
            self._loop.call_later(delay_s, start, context=NOBODYS.copy())
        return handle

    def _start(self, actor: Actor, node: Node) -> None:
        if node.starts_actors:
            actor.start()
        elif actor.process.is_alive:
            actor.process.kill()

    def _place(self, options: dict[str, Any]) -> Node | None:
        strategy = options.get("scheduling_strategy")
        if strategy is not None:
            wanted = [node for node in self.nodes if node.id == strategy.node_id]
        elif any(name.startswith("node:") for name in options.get("resources") or {}):
            wanted = [node for node in self.nodes if node.is_head]
        else:
            wanted = self.nodes
        wanted = [node for node in wanted if node.is_alive]
        return self._rng.choice(wanted) if wanted else None

    def _free(self, key: tuple[str, str], handle: Handle) -> None:
        def free() -> None:
            if self._named.get(key) is handle:
                del self._named[key]

        self._loop.call_later(self._rng.uniform(0, NAME_S), free, context=NOBODYS.copy())


class Context:
    """`ray.get_runtime_context()` of the process that asks."""

    def __init__(self, current_actor: Callable[[Process], Handle]) -> None:
        self._current_actor = current_actor

    @property
    def current_actor(self) -> Handle:
        return self._current_actor(PROCESS.get())

    def get_node_id(self) -> str:
        node_id: str = PROCESS.get().node.id
        return node_id

    def get_actor_id(self) -> str:
        return PROCESS.get().name
