"""The judge: holds the rules 1, 2, 3 and 7 of docs/architecture.md against whatever happens.

It sees each write as it takes effect, each answer as the manager gives it, and each process as it
begins, is told to end, and ends. A violation is an AssertionError, kept until the test looks: it
may come up in the midst of a callback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ray_jobs.claims import KV_NAMESPACE
from ray_jobs.errors import JobNotFound
from ray_jobs.manager import placing
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.models import JobErrorType, JobStatus
from ray_jobs.records import ChangeBatch, JobRecord, ManagerReply, decode_record
from ray_jobs.store import RECORD_PREFIX
from tests.model.loop import Process
from tests.model.node import Node

#: A job isn't given up before so many supervisors have died.
MOST_DEATHS = placing.MAX_PLACEMENTS
#: A job: its id, and the key of the request that made it. An id may be used again.
Key = tuple[str, str]


@dataclasses.dataclass
class Facts:
    """What is known of one job, from outside."""

    is_acknowledged: bool = False
    stop_asked: bool = False
    delete_asked: bool = False
    is_archived: bool = False
    attempts: list[str] = dataclasses.field(default_factory=list)
    begun: list[str] = dataclasses.field(default_factory=list)
    exit_codes: list[int] = dataclasses.field(default_factory=list)
    disturbed: list[str] = dataclasses.field(default_factory=list)
    #: Managers that have been told how it ended, but those whom its node's death had ended it for.
    told: set[str] = dataclasses.field(default_factory=set)
    #: Supervisors that died when they had the job.
    supervisor_deaths: int = 0
    end: JobRecord | None = None

    @property
    def may_be_gone(self) -> bool:
        return self.delete_asked or self.is_archived


class Judge:
    """`kv` and `nodes` are what it looks at; `told` gets what happens, as lines."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.data: dict[tuple[bytes | None, str], bytes] = {}
        self.nodes: list[Node] = []
        self.violations: list[str] = []
        #: Hears of moments at which a death is worst: a status was written, an attempt began.
        self.on_moment: Callable[[str, str], None] = lambda moment, attempt: None
        self._facts: dict[Key, Facts] = {}
        self._job_of: dict[str, Key] = {}
        self._told = told
        self._epochs: dict[str, int] = {}
        #: The epoch of the newest manager that has begun to read.
        self._reading = 0
        #: Ids of stops and deletions that weren't answered yet.
        self._stopping: list[str] = []
        self._deleting: list[str] = []

    def claim(self, holds: bool, rule: str, what: str) -> None:
        if not holds:
            self.violations.append(f"{rule}: {what}")
            self._told(f"VIOLATION of {rule}: {what}")

    def supervisor_died(self, submission_id: str | None, attempts: Iterable[str]) -> None:
        """A supervisor died: a job's own, or one of the pool, which has been given attempts."""
        keys = {self._job_of[attempt] for attempt in attempts if attempt in self._job_of}
        record = self.record(submission_id) if submission_id is not None else None
        if record is not None:
            keys.add(key_of(record))
        for key in keys:
            self.facts(key).supervisor_deaths += 1

    def is_told(self, process: Process | None, status: dict[str, Any]) -> None:
        """A supervisor's report of an end has come to a manager."""
        if process is not None and status["state"] == "exited" and not status.get("node_died"):
            self.facts(self._job_of[status["attempt"]]).told.add(process.name)
            self.on_moment("told", status["attempt"])

    def facts(self, key: Key) -> Facts:
        return self._facts.setdefault(key, Facts())

    def record(self, submission_id: str) -> JobRecord | None:
        data = self.data.get((KV_NAMESPACE, RECORD_PREFIX + submission_id))
        return decode_record(data) if data is not None else None

    def records(self) -> dict[str, JobRecord]:
        return {
            key.removeprefix(RECORD_PREFIX): decode_record(data)
            for (space, key), data in self.data.items()
            if space == KV_NAMESPACE and key.startswith(RECORD_PREFIX)
        }

    # --- what the KV tells ----------------------------------------------------------------------

    def reads_records(self, process: Process) -> None:
        self._reading = max(self._reading, self._epochs.get(process.name, 0))

    def puts(self, process: Process, namespace: bytes, key: str, value: bytes) -> None:
        if namespace == KV_NAMESPACE and key.startswith("epoch:"):
            self._epochs[process.name] = int(key.removeprefix("epoch:"))
            return
        self._told(
            f"  {process} writes {key} {value.decode() if namespace == KV_NAMESPACE else ''}"
        )
        self._check_fence(process, key)
        if namespace == KV_NAMESPACE:
            new = decode_record(value)
            self._check_record(process, new, self.record(new.submission_id))

    def deletes(self, process: Process, namespace: bytes, key: str) -> None:
        if key.startswith("epoch:"):
            return
        self._told(f"  {process} removes {key}")
        self._check_fence(process, key)
        if namespace != KV_NAMESPACE:
            return
        record = self.record(key.removeprefix(RECORD_PREFIX))
        assert record is not None
        facts = self.facts(key_of(record))
        if facts.is_acknowledged:
            self.claim(
                facts.may_be_gone, "rule 2", f"{key} is removed: nobody asked, nor is it archived"
            )
            # Its end and its deletion may come in one write.
            self._check_nothing_lives(record, facts)

    def _check_fence(self, process: Process, key: str) -> None:
        epoch = self._epochs.get(process.name, 0)
        self.claim(
            epoch >= self._reading, "rule 1", f"epoch {epoch} writes {key} after {self._reading}"
        )

    def _check_record(self, process: Process, new: JobRecord, old: JobRecord | None) -> None:
        key = key_of(new)
        facts = self.facts(key)
        facts.stop_asked |= key[0] in self._stopping
        facts.delete_asked |= key[0] in self._deleting
        if not facts.attempts or facts.attempts[-1] != new.attempt:
            facts.attempts.append(new.attempt)
            self._job_of[new.attempt] = key
        if old is not None:
            self.claim(key_of(old) == key, "rule 3", f"{key} overwrites another job")
            self._check_end(new, old)
            if old.stop_requested:
                self.claim(
                    new.stop_requested or new.status.is_terminal(),
                    "rule 2",
                    f"the stop of {key} is lost",
                )
        if new.stop_requested and old is not None and not old.stop_requested:
            self.on_moment("stop", new.attempt)
        if old is None or old.status is not new.status:
            self.on_moment("end" if new.status.is_terminal() else new.status.value, new.attempt)
        if new.status.is_terminal() and facts.end is None:
            facts.end = new
            self._check_cause(process, new, facts)
            self._check_nothing_lives(new, facts)

    def _check_end(self, new: JobRecord, old: JobRecord) -> None:
        if old.status.is_terminal():
            self.claim(
                end_of(new) == end_of(old),
                "rule 3",
                f"{key_of(new)} was {end_of(old)}, becomes {end_of(new)}",
            )

    def _check_cause(self, process: Process, record: JobRecord, facts: Facts) -> None:
        """Nothing but its own exit, a stop or its node's or keeper's death ends a job."""
        what = f"{key_of(record)} ends as {end_of(record)} {record.message!r}: {facts}"
        if record.status is JobStatus.STOPPED:
            self.claim(facts.stop_asked, "rule 7", what)
            return
        if record.driver_exit_code is not None:
            self.claim(record.driver_exit_code in facts.exit_codes, "rule 7", what)
            return
        alive = [node.id for node in self.nodes if node.is_alive]
        its_node_is_gone = record.driver_node_id is not None and record.driver_node_id not in alive
        # Given up before it began: only after as many deaths as the manager bears.
        is_given_up = (
            not facts.begun
            and facts.supervisor_deaths >= MOST_DEATHS
            and (record.message or "").startswith("Job supervisor actor died: ")
        )
        self.claim(bool(facts.disturbed) or its_node_is_gone or is_given_up, "rule 7", what)
        wanted = {JobErrorType.JOB_SUPERVISOR_ACTOR_DIED.value}
        if "start" in facts.disturbed and not facts.begun:
            wanted.add(JobErrorType.JOB_ENTRYPOINT_COMMAND_START_ERROR.value)
        self.claim(record.error_type in wanted, "its reason", what)
        self.claim(process.name not in facts.told, "rule 7", f"{process} knew better: {what}")

    def _check_nothing_lives(self, record: JobRecord, facts: Facts) -> None:
        for node in self.nodes:
            for keeper in node.keepers:
                if keeper.attempt in facts.attempts:
                    self.claim(
                        not keeper.entrypoint_runs,
                        "rule 7",
                        f"{key_of(record)} has ended, its entrypoint runs on {node.id}",
                    )

    # --- what the archive tells -----------------------------------------------------------------

    def archives(self, data: bytes) -> None:
        """Lines of jobs that may leave are there for good."""
        for line in data.splitlines():
            job = json.loads(line)
            self._told(f"  {job['submission_id']} is archived, {job['attempt']}")
            facts = self.facts(self._job_of[job["attempt"]])
            self.claim(
                facts.end is not None
                and end_of(facts.end) == (job["status"], job["driver_exit_code"], job["end_time"]),
                "rule 3",
                f"it is archived as {job}, and ended as {facts.end}",
            )
            facts.is_archived = True

    # --- what nodes tell ------------------------------------------------------------------------

    def begins(self, node: Node, attempt: str) -> None:
        self._told(f"  {attempt} begins on {node.id}")
        key = self._job_of.get(attempt)
        if key is None:
            self.claim(False, "rule 2", f"{attempt} begins, and has no record")
            return
        facts = self.facts(key)
        record = self.record(key[0])
        self.claim(
            record is not None
            and key_of(record) == key
            and record.status is JobStatus.RUNNING
            and record.attempt == attempt
            and record.driver_node_id == node.id,
            "rule 2",
            f"{attempt} begins on {node.id}, its record is {record}",
        )
        self.claim(not facts.begun, "rule 3", f"{key} begins again: {facts.begun}, then {attempt}")
        facts.begun.append(attempt)
        self.on_moment("begin", attempt)

    def ends(self, attempt: str, code: int) -> None:
        self._told(f"  {attempt} exits with {code}")
        self.facts(self._job_of[attempt]).exit_codes.append(code)

    def is_disturbed(self, attempt: str, reason: str) -> None:
        if attempt in self._job_of:
            self.facts(self._job_of[attempt]).disturbed.append(reason)

    def is_stopped(self, attempt: str, signal: int) -> None:
        self._told(f"  {attempt} is told to end, by signal {signal}")
        record = self._record_of(attempt)
        self.claim(
            record is None or record.stop_requested or record.status.is_terminal(),
            "rule 2",
            f"{attempt} is told to end, its record is {record}",
        )

    def is_forgotten(self, attempt: str) -> None:
        """Without its folder, nobody knows how it ended, nor that it was begun."""
        self._told(f"  {attempt} is forgotten")
        record = self._record_of(attempt)
        self.claim(
            record is None or record.status.is_terminal(),
            "rule 2",
            f"{attempt} is forgotten, its record is {record}",
        )

    def _record_of(self, attempt: str) -> JobRecord | None:
        """Return the record of an attempt; None if its job is gone, or has another one by now."""
        key = self._job_of[attempt]
        record = self.record(key[0])
        if record is None or key_of(record) != key or record.attempt != attempt:
            return None
        return record

    # --- what the manager answers ---------------------------------------------------------------

    def answers_submit(self, key: Key, reply: ManagerReply, is_only: bool) -> None:
        """`is_only`: no other request ever had this id."""
        facts = self.facts(key)
        if reply.error is not None:
            self.claim(not is_only, "rule 2", f"{key} is refused: {reply.error}")
            return
        record = self.record(key[0])
        self.claim(
            facts.may_be_gone or (record is not None and key_of(record) == key),
            "rule 2",
            f"{key} is acknowledged, its record is {record}",
        )
        facts.is_acknowledged = True

    def answers_stop(self, submission_id: str, reply: ManagerReply) -> None:
        record = self.record(submission_id)
        if reply.error is None and record is not None:
            facts = self.facts(key_of(record))
            self.claim(
                record.stop_requested or record.status.is_terminal() or not facts.stop_asked,
                "rule 2",
                f"the stop of {submission_id} is acknowledged, its record is {record}",
            )

    def answers_delete(self, submission_id: str, reply: ManagerReply) -> None:
        if reply.error is not None:
            return
        record = self.record(submission_id)
        self.claim(
            record is None or not record.status.is_terminal(),
            "rule 2",
            f"the deletion of {submission_id} is acknowledged, its record is {record}",
        )
        mirror = (MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + submission_id)
        self.claim(
            record is not None or mirror not in self.data,
            "rule 2",
            f"{submission_id} is deleted, its mirror isn't",
        )

    def known(self, submission_id: str) -> Key | None:
        """Return the job of this id that a client may ask for from now on, None without one."""
        record = self.record(submission_id)
        if record is None or not self.facts(key_of(record)).is_acknowledged:
            return None
        return key_of(record)

    def answers_for(self, key: Key | None, reply: ManagerReply) -> None:
        """Who asked for a `known` job has an answer."""
        if key is not None and reply.error is not None:
            self.claim(
                reply.error.code != JobNotFound.code or self.facts(key).may_be_gone,
                "rule 2",
                f"{key} was acknowledged, and a client is told: {reply.error.message}",
            )

    @contextlib.contextmanager
    def stopping(self, submission_id: str) -> Iterator[None]:
        """A client asks for a stop, until it has its answer: of whatever job has the id."""
        self._stopping.append(submission_id)
        self._note_asked(submission_id)
        yield
        self._stopping.remove(submission_id)

    @contextlib.contextmanager
    def deleting(self, submission_id: str) -> Iterator[None]:
        """A client asks for a deletion, as `stopping`."""
        self._deleting.append(submission_id)
        self._note_asked(submission_id)
        yield
        self._deleting.remove(submission_id)

    def _note_asked(self, submission_id: str) -> None:
        record = self.record(submission_id)
        if record is not None:
            facts = self.facts(key_of(record))
            facts.stop_asked |= submission_id in self._stopping
            facts.delete_asked |= submission_id in self._deleting

    def publishes(self, batch: ChangeBatch) -> None:
        for change in batch.changes:
            stored = self.record(change.submission_id)
            if change.record is None:
                continue
            seen = decode_record(change.record)
            facts = self.facts(key_of(seen))
            self.claim(
                bool(facts.attempts), "rule 2", f"{key_of(seen)} is shown, and has no record"
            )
            if not seen.status.is_terminal():
                continue
            self.claim(
                facts.end is not None and end_of(facts.end) == end_of(seen),
                "rule 3",
                f"{key_of(seen)} is shown as {end_of(seen)}, its record is {stored}",
            )

    # --- at any moment --------------------------------------------------------------------------

    def look(self) -> None:
        """Hold what must be so at any moment."""
        records = self.records()
        for key, facts in self._facts.items():
            if facts.is_acknowledged and not facts.may_be_gone:
                record = records.get(key[0])
                self.claim(
                    record is not None and key_of(record) == key,
                    "rule 2",
                    f"{key} was acknowledged, and is lost",
                )

    def live_facts(self) -> list[tuple[Key, Facts]]:
        return list(self._facts.items())


def key_of(record: JobRecord) -> Key:
    return record.submission_id, record.request_key


def end_of(record: JobRecord) -> tuple[Any, ...]:
    return record.status.value, record.driver_exit_code, record.end_time
