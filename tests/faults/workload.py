"""A workload of jobs in every state, and what must have become of each in the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import os
import random
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.judging import orphans
from tests.faults.processes import of_jobs, unmarked
from tests.faults.table import Verdict

RETRY_S = 0.05
#: What a request raises that has got no answer.
NO_ANSWER = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)
#: Longer than a face lets a request wait before it answers 503.
REQUEST_TIMEOUT_S = 70.0
#: Until every job has ended after the last fault.
END_TIMEOUT_S = 90.0
ENDS = ("SUCCEEDED", "FAILED", "STOPPED")
#: What a client is told of an end.
END_FIELDS = ("status", "driver_exit_code", "end_time")
HELD_CODE = 5
KILLED_CODE = -9
#: What a job reserves so that it gets a supervisor of its own.
OWN_CPUS = 0.01
STOP_WAIT_S = 1.0
STOP_WAIT = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_WAIT_S:g}"}}
#: How much earlier a job was seen alive last than it was killed, on a busy machine.
UNSEEN_S = 0.5
#: By which an anonymous job tells its name: a field of its metadata.
STAKE = "stake"
#: What runs until it is stopped, and some of that doesn't want to end then.
STOPPED_SCRIPTS = {
    "stopped": "sleep 1000",
    "deaf": 'while :; do : > "$alive"; sleep 0.05; done',
    "forking": "trap '' TERM; f() { (trap '' TERM; sleep 0.05; f) & }; f; f; sleep 1000",
    "daemons": "trap '' TERM; (setsid sh -c '(setsid sleep 999 &); sleep 999' &); sleep 999",
}
#: Those that also start a process that only its number tells from the machine's others.
UNMARKED_KINDS = ("held", "family", "daemons")


@dataclasses.dataclass
class Stake:
    """One job, and how it must end."""

    name: str  #: Of the file in which it counts its starts.
    kind: str
    status: str
    code: int | None = None
    starts: tuple[int, ...] = (1,)  #: How often it may have been started.
    number: int | None = None  #: Of its process without a mark, if it has one.
    acknowledged: bool = False
    stop_sent: float | None = None  #: When a stop was asked for first (`time.time`).
    stop_acknowledged: float | None = None  #: When that was answered well.
    #: Its name, but for an anonymous one: that has the id which the answer told.
    submission_id: str = ""
    package: bytes = b""  #: What its environment is built from.
    #: Set once it is acknowledged.
    accepted: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.submission_id = self.submission_id or self.name


class Workload:
    """Submits jobs over REST as a client that waits and tries again would.

    Args:
        kinds: The kinds of jobs, each as often as it is named.
        rate: Submissions a second.
        face_lives: So that a request without a right answer is a problem.
    """

    def __init__(
        self,
        address: str,
        folder: Path,
        rng: random.Random,
        kinds: tuple[str, ...],
        rate: float,
        *,
        face_lives: bool = False,
    ) -> None:
        self.address = address
        self.jobs: list[Stake] = []
        self.problems: list[str] = []
        #: When the latest fault was injected, on the clock of `time.monotonic`.
        self.injected_at = 0.0
        #: What a job's message says that may have FAILED by the fault.
        self.excuse: str | None = None
        #: Since the submission began, or the latest fault.
        self.longest_submission_s = 0.0
        #: Of a job that doesn't end by itself, since its stop was answered.
        self.longest_stop_s = 0.0
        self._folder = folder
        self._rng = rng
        self._kinds = kinds
        self._rate = rate
        self._face_lives = face_lives
        #: The ends that clients were told, by submission id.
        self._ends: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            # Else a read waits, with a hundred submissions that wait before it, for a connection.
            connector=aiohttp.TCPConnector(limit=0),
        )
        # Else aiohttp hides a connection that broke: it sends the request again. It has no public
        # way to say so.
        self.session._retry_connection = not face_lives
        self._mark = uuid.uuid4().hex[:8]
        # Whoever opens it to read waits until the test opens it to write.
        os.mkfifo(folder / "gate")

    async def submit_for_ever(self) -> None:
        while True:
            self.begin(self._rng.choice(self._kinds))
            await asyncio.sleep(self._rng.expovariate(self._rate))

    def begin(self, kind: str) -> Stake:
        """Have a job of a kind submitted. It is at stake once it is acknowledged."""
        stake, request = self._new(kind)
        self.jobs.append(stake)
        task = asyncio.ensure_future(self._submit(stake, request))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return stake

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.problems.append(repr(task.exception()))

    def _new(self, kind: str) -> tuple[Stake, dict[str, Any]]:
        name = f"{kind}-{len(self.jobs)}-{self._mark}"
        path = f"{self._folder}/{name}"
        # It counts its starts, and tells the pid of its shell at once, not bit by bit.
        started = (
            f"printf x >> {path}; echo $$ $RAY_JOBS_ATTEMPT > {path}.new; mv {path}.new {path}.pid"
        )
        code = self._rng.choice((0, 0, 0, 3))
        stake = Stake(name, kind, "FAILED" if code else "SUCCEEDED", code)
        request: dict[str, Any] = {"submission_id": name}
        if kind == "quick":
            script = f"exit {code}"
        elif kind == "short":
            script = f"sleep {self._rng.uniform(0, 2):.2f}; exit {code}"
        elif kind == "held":
            script = f": < {self._folder}/gate; exit {HELD_CODE}"
            started = f"setsid sleep 1000 & sleep 1000 & {started}"
            stake = Stake(name, kind, "FAILED", HELD_CODE)
        elif kind == "family":
            script = "setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 999') & exit 0"
            stake = Stake(name, kind, "SUCCEEDED", 0)
        elif kind == "placed":  # by Ray: it has a supervisor of its own
            script = f"sleep {self._rng.uniform(0, 2):.2f}; exit {code}"
            request["entrypoint_num_cpus"] = 0.01
        elif kind == "queued":
            script = "exit 0"
            request["entrypoint_resources"] = {"nowhere": 1}
            stake = Stake(name, kind, "STOPPED", starts=(0,))
        elif kind == "own":  # as held, under a supervisor of its own
            script = f": < {self._folder}/gate; exit {HELD_CODE}"
            request["entrypoint_num_cpus"] = OWN_CPUS
            stake = Stake(name, kind, "FAILED", HELD_CODE)
        elif kind == "packaged":  # no other job has its environment
            script = f'[ "$(cat name)" = {name} ] || exit 99; exit {code}'
            stake.package = package_of({"name": name})
            request["runtime_env"] = {"working_dir": f"gcs://{package_name(stake.package)}"}
        elif kind == "anonymous":  # nobody knows it but by the answer
            script = f"exit {code}"
            request = {"metadata": {STAKE: name}}
        else:
            script = STOPPED_SCRIPTS[kind]
            if kind == "deaf":  # from before its start counts; and it tells until when it lives
                started = f"trap '' TERM; alive={path}.alive; {started}"
            request["runtime_env"] = STOP_WAIT
            stake = Stake(name, kind, "STOPPED", starts=(0, 1))
        if kind in UNMARKED_KINDS:
            stake.number = len(self.jobs)
            started = f"{unmarked(stake.number)}; {started}"
        request["entrypoint"] = f"{started}; {script}"
        return stake, request

    async def _submit(self, stake: Stake, request: dict[str, Any]) -> None:
        if stake.package:
            path = f"/api/packages/gcs/{package_name(stake.package)}"
            await self._until_accepted(stake, "PUT", path, data=stake.package)
        began = time.monotonic()
        if stake.kind == "anonymous":
            stake.acknowledged = await self._post_once(stake, request)
        else:
            stake.acknowledged = await self._until_accepted(
                stake, "POST", "/api/jobs/", json=request
            )
        if stake.acknowledged:
            stake.accepted.set()
            waited_s = time.monotonic() - max(began, self.injected_at)
            self.longest_submission_s = max(self.longest_submission_s, waited_s)
        if stake.kind == "stopped":
            await asyncio.sleep(self._rng.uniform(0, 1.5))
            await self.stop(stake)

    async def stop(self, stake: Stake) -> None:
        path = f"/api/jobs/{stake.submission_id}/stop"
        stake.stop_sent = stake.stop_sent or time.time()
        if await self._until_accepted(stake, "POST", path):
            stake.stop_acknowledged = time.time()

    async def begin_stop(self) -> None:
        """Have a job that is being stopped, which takes it `STOP_WAIT_S`."""
        stake = self.begin("deaf")
        await self.pid(stake)
        await self.stop(stake)

    async def begin_start(self) -> None:
        """Have a job that is being started, which takes a worker's start."""
        stake = self.begin("own")
        await asyncio.wait_for(stake.accepted.wait(), END_TIMEOUT_S)

    async def _post_once(self, stake: Stake, request: dict[str, Any]) -> bool:
        """Submit a job that has no id yet. Returns whether there is one, as far as is known.

        Not again if there is no answer: who has no id can't tell whether that would be another job.
        """
        with self.request(stake.name):
            async with self.session.post(f"{self.address}/api/jobs/", json=request) as response:
                if response.status == 200:
                    stake.submission_id = (await response.json())["submission_id"]
                    return True
                self._check_refusal(stake, response, await response.text())
        return False

    async def _until_accepted(self, stake: Stake, method: str, path: str, **body: Any) -> bool:
        """Send a request until it gets an answer that isn't "later". Returns whether it is good."""
        tried = False
        while True:
            with self.request(f"{stake.name}: {method} {path}"):
                async with self.session.request(method, self.address + path, **body) as response:
                    text = await response.text()
                    if response.status == 200 or (tried and "already exists" in text):
                        return True
                    self._check_refusal(stake, response, text)
                    if response.status != 503:
                        return False
            await asyncio.sleep(RETRY_S)
            tried = True

    @contextlib.contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Go on if a request gets no answer."""
        try:
            yield
        except NO_ANSWER as error:
            self.unanswered(f"{name}: no answer, {error!r}")

    def unanswered(self, what: str) -> None:
        """Note what no client should see of a face that lives."""
        if self._face_lives:
            self.problems.append(what)

    def _check_refusal(self, stake: Stake, response: aiohttp.ClientResponse, text: str) -> None:
        if response.status != 503:
            self.problems.append(f"{stake.name}: {response.status} {text}")
        elif "Retry-After" not in response.headers:
            self.problems.append(f"503 without Retry-After: {text}")

    async def pid(self, stake: Stake) -> int:
        """Return the pid of a job's shell once it runs."""
        path = self._pid_file(stake)
        deadline = time.monotonic() + END_TIMEOUT_S
        while not path.exists():
            assert time.monotonic() < deadline, f"{stake.name} doesn't start"
            await asyncio.sleep(RETRY_S)
        return int(path.read_text().split()[0])

    def left_of(self, stake: Stake) -> list[str]:
        """Return the processes of a job that has run."""
        attempt = self._pid_file(stake).read_text().split()[1]
        return of_jobs(attempt.encode(), stake.number)

    def _pid_file(self, stake: Stake) -> Path:
        return self._folder / f"{stake.name}.pid"

    async def info(self, stake: Stake) -> dict[str, Any]:
        async with self.session.get(f"{self.address}/api/jobs/{stake.submission_id}") as response:
            found: dict[str, Any] = await response.json() if response.status == 200 else {}
            return found

    async def ended(self, stake: Stake, timeout_s: float) -> dict[str, Any]:
        """Return what is known of a job as soon as it has ended, or after the timeout."""
        async with self.session.get(
            f"{self.address}/api/ray_jobs/v1/jobs/{stake.submission_id}/wait",
            params={"timeout_s": str(timeout_s)},
        ) as response:
            found: dict[str, Any] = await response.json()
            return found

    def see(self, jobs: Iterable[dict[str, Any]]) -> None:
        """Note which jobs have ended, and how. Called with lists in the order of their reads."""
        for job in jobs:
            self._check_end(job)
            if job["status"] in ENDS:
                told = {name: job[name] for name in END_FIELDS}
                self._ends.setdefault(job["submission_id"], told)

    def _check_end(self, job: dict[str, Any]) -> None:
        """Hold a job to the end that a client was told before: that is final, whatever came."""
        end = self._ends.get(job["submission_id"])
        now = {name: job[name] for name in END_FIELDS}
        if end not in (None, now):
            self.problems.append(f"{job['submission_id']}: {now}, which had ended: {end}")

    # --- the end ----------------------------------------------------------------------------

    async def finish(self) -> None:
        """Let every job come to its end, and wait for it."""
        await asyncio.wait_for(asyncio.gather(*self._tasks), END_TIMEOUT_S)
        await asyncio.gather(*(self.stop(each) for each in self.jobs if each.kind == "queued"))
        deadline = time.monotonic() + END_TIMEOUT_S
        while await self._any_live() and time.monotonic() < deadline:
            # Again and again: a job that is started only now waits for the gate too.
            await asyncio.to_thread(self._open_gate)
            await asyncio.sleep(RETRY_S)

    async def _any_live(self) -> bool:
        """Return whether any job lives, also one whose client had no answer."""
        return any(each["status"] not in ENDS for each in await self._listed())

    async def _listed(self) -> list[dict[str, Any]]:
        async with self.session.get(f"{self.address}/api/jobs/") as response:
            found: list[dict[str, Any]] = await response.json()
            return [each for each in found if each["submission_id"] is not None]

    def _open_gate(self) -> None:
        try:
            os.close(os.open(self._folder / "gate", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return  # nobody waits

    async def verdict(self) -> Verdict:
        """Return what has become of the jobs that were acknowledged."""
        jobs = [each for each in self.jobs if each.acknowledged]
        lost = []
        for stake in jobs:
            info = await self.info(stake)
            if info:
                self._check_end(info)
            starts = self._starts(stake)
            right = info.get("status") == stake.status and starts in stake.starts
            if stake.code is not None and info.get("driver_exit_code") != stake.code:
                right = False
            if info.get("status") == "FAILED" and self.excuse is not None:
                right = right or self.excuse in (info["message"] or "")
            if starts <= 1 and not right:
                lost.append(
                    f"{stake.name}: {info.get('status')}, {starts} starts,"
                    f" {info.get('message')!r}, not {stake.status} {stake.code}"
                )
            if stake.kind == "deaf" and info.get("status") == "STOPPED" and starts == 1:
                self._check_stop(stake, info)
        twice = self.started_twice() + await self._there_twice()
        left = await asyncio.to_thread(orphans)
        return Verdict(len(jobs), lost, twice, left, self.problems)

    def _check_stop(self, stake: Stake, info: dict[str, Any]) -> None:
        """Hold the stop of a job that ends by SIGKILL alone to its wait."""
        alive = self._folder / f"{stake.name}.alive"
        if stake.stop_sent is None or stake.stop_acknowledged is None or not alive.exists():
            return
        ended = alive.stat().st_mtime
        # It may have got no time to tell that it still lived.
        waited_s = max(ended, info["end_time"] / 1000) - stake.stop_sent
        if waited_s < STOP_WAIT_S - UNSEEN_S:
            self.problems.append(f"{stake.name}: killed {waited_s:.2f} s after its stop")
        self.longest_stop_s = max(self.longest_stop_s, ended - stake.stop_acknowledged)

    def started_twice(self) -> list[str]:
        return [each.name for each in self.jobs if self._starts(each) > 1]

    async def _there_twice(self) -> list[str]:
        """Return what was submitted without an id, once, and has become several jobs."""
        found = [(each["metadata"] or {}).get(STAKE) for each in await self._listed()]
        anonymous = [each.name for each in self.jobs if each.kind == "anonymous"]
        return [f"{name}: {found.count(name)} jobs" for name in anonymous if found.count(name) > 1]

    def _starts(self, stake: Stake) -> int:
        path = self._folder / stake.name
        return path.stat().st_size if path.exists() else 0

    async def abort(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(self.stop(each) for each in self.jobs if each.acknowledged))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.session.close()


def package_of(files: dict[str, str]) -> bytes:
    """Return a package for a `working_dir`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def package_name(package: bytes) -> str:
    return f"_ray_pkg_{hashlib.sha1(package).hexdigest()}.zip"
