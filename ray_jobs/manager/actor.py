"""The JobManager actor: what the HTTP face calls.

Detached and restartable, one per cluster, on the head node. Calls may be repeated, by their callers
or by Ray, when the actor was restarted under them: none does harm then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import ray

from ray_jobs import _ray
from ray_jobs.channel import forget_sockets
from ray_jobs.claims import VERSION, Claim
from ray_jobs.environ import number
from ray_jobs.errors import (
    InvalidRequest,
    InvalidRuntimeEnv,
    JobNotFound,
    JobNotTerminal,
    RayJobsError,
)
from ray_jobs.manager.env_files import EnvFiles, files_of
from ray_jobs.manager.environments import Environments, Pins
from ray_jobs.manager.face_channel import serve_faces
from ray_jobs.manager.finished_jobs import RetentionSettings
from ray_jobs.manager.foreign import START_INTEREST_S, ForeignJobs
from ray_jobs.manager.intake import Intake
from ray_jobs.manager.joblog import JobLogs
from ray_jobs.manager.journal import Journal
from ray_jobs.manager.leads import Services
from ray_jobs.manager.log_bound import LogBound
from ray_jobs.manager.pool import Member, Pool, PoolSettings
from ray_jobs.manager.recovery import end_leftovers, until_done, without_collector
from ray_jobs.manager.retention import ARCHIVE_FOLDER, Retention
from ray_jobs.manager.runner import Runner
from ray_jobs.manager.seats import Found, PooledSupervisors
from ray_jobs.manager.supervisors import Supervisors
from ray_jobs.manager.times import submitted_now
from ray_jobs.models import JobStatus, SubmitRequest
from ray_jobs.records import ErrorBody, JobRecord, ManagerReply, encode_message
from ray_jobs.runtime_env_fields import PLUGIN_VARIABLES, check_known
from ray_jobs.scrubbing import scrubbed, secret_values, shown
from ray_jobs.store import KvStore, StoredIds, Superseded
from ray_jobs.supervisor.node import (
    CHANNEL_PREFIX,
    attempts_here,
    end_by_sigterm,
    forget_ended,
    work_dir,
)
from ray_jobs.validation import (
    MIN_MAX_LOG_BYTES,
    check_job_config,
    check_no_local_paths,
    validate,
)

logger = logging.getLogger(__name__)

ACTOR_NAME = "ray_jobs_manager"
MAX_CONCURRENCY = 10_000

#: A package of a live job is pinned for so long, and renewed in time.
PIN_S = 600
#: Of what Ray says of a submission that it refuses.
MAX_SAID_CHARACTERS = 1000

_submit_decoder = msgspec.json.Decoder(SubmitRequest)


class JobManager:
    """The only writer of job state (rule 1)."""

    def __init__(self) -> None:
        end_by_sigterm()
        self._recovery: asyncio.Task[None] | None = None
        self._accepts = asyncio.Event()
        self._is_ready = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._env_files = EnvFiles(_ray.normalised_runtime_env)
        # A restarted manager leads its jobs on though nobody calls it. The constructor isn't a
        # coroutine, so it calls itself.
        ray.get_runtime_context().current_actor.recover.remote()

    # --- calls ------------------------------------------------------------------------------

    async def submit(self, request_json: bytes, request_key: str) -> bytes:
        """Record a job and begin to run it. The answer is a `ManagerReply`."""
        return await self._reply(self._submit(request_json, request_key))

    async def stop(self, submission_id: str) -> bytes:
        """Request the end of a job. The answer is a `ManagerReply`."""
        return await self._reply(self._stop(submission_id))

    async def delete(self, submission_id: str) -> bytes:
        """Remove a job that has ended. The answer is a `ManagerReply`."""
        return await self._reply(self._delete(submission_id))

    async def changes(
        self, epoch: int, since: int, timeout_s: float, beside_ray: bool = False
    ) -> bytes:
        """Return a `ChangeBatch` of what came after a revision, once there is something.

        Args:
            beside_ray: The caller serves beside Ray's own job server, whose jobs it shows too.
        """
        await self._until_ready()
        if beside_ray:
            self._foreign.expect_more()
        if epoch == 0:
            self._look_at_what_rays_server_did()
        return encode_message(await self._journal.changes(epoch, since, timeout_s))

    def _look_at_what_rays_server_did(self) -> None:
        """For a face that has just started: Ray's own server may have served in its place.

        It marks jobs of the pool FAILED, which it doesn't find; and has had jobs of its own.
        """
        self._foreign.expect_more(START_INTEREST_S)
        live = [record for record in self._journal.records() if record.is_live]
        self._spawn(self._store.mirror.repair(live, self._journal.at_rest))

    async def accepts(self) -> None:
        """Return once submissions can be recorded, and faces be answered through a socket."""
        await self._until_accepting()

    async def recover(self) -> None:
        """Take over the jobs that are there. No-op when it is done."""
        await self._until_ready()

    # --- recovery ---------------------------------------------------------------------------

    async def _until_accepting(self) -> None:
        """Wait until submissions can be recorded."""
        self._ensure_recovering()
        await self._accepts.wait()

    async def _until_ready(self) -> None:
        """Wait until all that an earlier manager left has been taken over."""
        self._ensure_recovering()
        await self._is_ready.wait()

    def _ensure_recovering(self) -> None:
        if self._recovery is None:
            self._recovery = asyncio.ensure_future(self._recover())

    async def _recover(self) -> None:
        """Take over from an earlier manager, however long the cluster fails."""
        try:
            await until_done(self._begin)
            calls = (self.submit, self.stop, self.delete, self.changes)
            methods = {call.__name__: call for call in calls}
            await serve_faces(methods, work_dir(), ray.get_runtime_context().get_actor_id())
            self._accepts.set()
            await until_done(self._take_over)
            self._is_ready.set()
        except Superseded:
            leave()

    async def _begin(self) -> None:
        """Claim the epoch and learn which ids are taken: enough to record others' jobs."""
        self._kv = _ray.Kv()
        actor_id = ray.get_runtime_context().get_actor_id()
        claim = Claim(VERSION, actor_id)
        store = KvStore(self._kv, _ray.mirror_fields(), claim.encoded())
        epoch = await store.claim_epoch()
        self._earlier = await store.ids()
        self._logs = JobLogs(_ray.logs_dir(), LogBound.of(_ray.logs_dir(), os.environ))
        self._logs.mark_head(work_dir())
        # Nothing below fails: a step that is tried again starts from nothing.
        self._store = store
        self._journal = Journal(store, epoch, on_superseded=leave)
        self._intake = Intake(self._journal, self._logs, self._earlier)

    async def _take_over(self) -> None:
        """Read every record, find the supervisors, lead the live jobs on."""
        with without_collector():
            records = await self._store.read(self._earlier)
            dashboard_url = await _ray.dashboard_url(self._kv)
            supervisors = Supervisors(
                # RAY_ADDRESS is the GCS's address inside a job; job clients need the dashboard's.
                default_env={"RAY_API_SERVER_ADDRESS": dashboard_url} if dashboard_url else {},
                drops_copied_logs=self._logs.bound.is_on or RetentionSettings.of(os.environ).is_on,
            )
            of_jobs, pooled = await supervisors.names()
            await end_leftovers(supervisors, of_jobs, records)
            live = [each for each in records if each.is_live]
            await self._logs.begin_missed(
                [each for each in live if each.status is JobStatus.PENDING]
            )
            running = [each.attempt for each in live if each.status is JobStatus.RUNNING]
            maker = PooledSupervisors(supervisors, self._journal.epoch, self._journal.give_way)
            # Of supervisors that died with the earlier manager.
            forget_sockets(work_dir(), CHANNEL_PREFIX)
            # Nobody else knows of those whose supervisor died after their ends were recorded.
            left = set(attempts_here()) - {each.attempt for each in live}
            found = await maker.find(pooled, running)
            # The last step, without an await: one that is tried again starts from nothing.
            self._lead_on(records, supervisors, maker, found)
            self._spawn(asyncio.to_thread(forget_ended, left))

    def _lead_on(
        self,
        records: list[JobRecord],
        supervisors: Supervisors,
        maker: PooledSupervisors,
        found: list[Found],
    ) -> None:
        environments = Environments(_ray.RuntimeEnvAgent(), streams_log=_ray.stream_env_setup_log())
        pool = Pool(maker, PoolSettings.of(os.environ, _ray.node_memory_bytes()))
        members: dict[str, Member] = {}
        for supervisor, attempts, is_current in found:
            # Two have the same one where a manager that was replaced had it adopted as well.
            others = [each for each in attempts if each not in members]
            member = pool.join(supervisor, len(others), retires=not is_current)
            members.update(dict.fromkeys(others, member))
        pool.fill()
        self._journal.seed(records)
        archive_dir = Path(self._logs.directory, ARCHIVE_FOLDER)
        settings = RetentionSettings.of(os.environ)
        self._retention = Retention(settings, self._journal, self._logs, archive_dir)
        self._runner = Runner(
            Services(
                journal=self._journal,
                supervisors=supervisors,
                pool=pool,
                environments=environments,
                pins=Pins(lambda uri: asyncio.to_thread(self._kv.pin_package, uri, PIN_S), PIN_S),
                logs=self._logs,
                node_id=ray.get_runtime_context().get_node_id(),
                agent_address=_ray.AgentAddresses(self._kv).of,
                node_lives=lambda node_id: asyncio.to_thread(_ray.node_lives, node_id),
                on_end=self._on_end,
            )
        )
        live = [record for record in records if record.is_live]
        for record in live:
            self._runner.lead_on(record.submission_id, members.get(record.attempt))
        self._intake.open(self._runner.run)
        self._logs.shelf.open(self._is_live)
        self._logs.bound.open(records, self._is_live)
        self._retention.open(records)
        self._spawn(self._store.mirror.repair(records, self._journal.at_rest))
        self._foreign = ForeignJobs(
            self._journal, self._store, supervisors, self._retention.deleted
        )
        self._earlier = StoredIds(frozenset(), frozenset())
        logger.info("Epoch %d: %d jobs, %d live.", self._journal.epoch, len(records), len(live))

    # --- inside -----------------------------------------------------------------------------

    async def _reply(self, call: Coroutine[Any, Any, ManagerReply]) -> bytes:
        try:
            return encode_message(await call)
        except RayJobsError as error:
            if not isinstance(error, InvalidRequest):
                # One that was replaced doesn't know what became of any job since.
                await self._journal.check_epoch()
            return encode_message(ManagerReply(error=ErrorBody(error.code, error.message)))

    async def _submit(self, request_json: bytes, request_key: str) -> ManagerReply:
        request = _submit_decoder.decode(request_json)
        submission_id = request.submission_id or request.job_id
        assert submission_id is not None
        await self._until_accepting()
        if request.runtime_env and files_of(request.runtime_env):
            check(request)
            with told_as_malformed(request.runtime_env):
                request.runtime_env = await self._env_files.read(request.runtime_env)
        await self._intake.submit(
            submission_id, request_key, lambda: new_record(request, submission_id, request_key)
        )
        return ManagerReply(value=submission_id, batch=self._journal.batch_of(submission_id))

    async def _stop(self, submission_id: str) -> ManagerReply:
        await self._until_ready()
        if self._journal.get(submission_id) is None:
            raise JobNotFound(f"Job {submission_id} does not exist")
        live = await self._runner.stop(submission_id)
        return ManagerReply(value=live, batch=self._journal.batch_of(submission_id))

    async def _delete(self, submission_id: str) -> ManagerReply:
        await self._until_ready()
        record = self._journal.get(submission_id)
        if record is None:
            raise JobNotFound(f"Job {submission_id} does not exist")
        if not record.status.is_terminal():
            raise JobNotTerminal(
                f"Attempted to delete job '{submission_id}', but it is in a non-terminal state"
                f" {record.status}. Stop it first."
            )
        await self._runner.finished(submission_id)
        await self._journal.delete(record)
        self._retention.deleted(record)
        return ManagerReply(value=True, batch=self._journal.batch_of(submission_id))

    def _on_end(self, submission_id: str) -> None:
        record = self._journal.get(submission_id)
        if record is not None and record.status.is_terminal():
            self._logs.bound.ended(submission_id)
            self._retention.ended(record)

    def _is_live(self, submission_id: str) -> bool:
        record = self._journal.get(submission_id)
        return record is not None and not record.status.is_terminal()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def new_record(request: SubmitRequest, submission_id: str, request_key: str) -> JobRecord:
    """Return the record of a new job. Raises `InvalidRequest`."""
    given = check(request)
    with told_as_malformed(given):
        runtime_env = _ray.normalised_runtime_env(given)
    # Ray adds to it, and a file's words may have come in its place.
    check_job_config(runtime_env, request.metadata, submission_id)
    selector = request.entrypoint_label_selector
    problem = _ray.label_selector_error(selector) if selector else None
    if problem:
        said = shown(problem, MAX_SAID_CHARACTERS)
        raise InvalidRequest(f"Malformed entrypoint_label_selector: {said}")
    return JobRecord(
        submission_id=submission_id,
        entrypoint=request.entrypoint,
        status=JobStatus.PENDING,
        **submitted_now(),
        metadata=request.metadata or {},
        runtime_env=runtime_env,
        entrypoint_num_cpus=request.entrypoint_num_cpus,
        entrypoint_num_gpus=request.entrypoint_num_gpus,
        entrypoint_memory=request.entrypoint_memory,
        entrypoint_resources=request.entrypoint_resources,
        entrypoint_label_selector=selector,
        max_log_bytes=request.max_log_bytes or default_max_log_bytes(os.environ),
        attempt=uuid.uuid4().hex,
        request_key=request_key,
    )


def check(request: SubmitRequest) -> dict[str, Any]:
    """Return a request's runtime environment. Raises `InvalidRequest` for what Ray needn't tell."""
    validate(request)
    given = request.runtime_env or {}
    check_known(given, has_plugins=any(os.environ.get(name) for name in PLUGIN_VARIABLES))
    check_no_local_paths(given)
    return given


@contextlib.contextmanager
def told_as_malformed(given: dict[str, Any]) -> Iterator[None]:
    """Raise `InvalidRuntimeEnv` for whatever Ray says of an environment, without its secrets."""
    try:
        yield
    except InvalidRuntimeEnv:
        raise
    except Exception as error:  # noqa: BLE001 - Ray opens files, and asks the schemas of plugins
        # Cut after that: of an address that was cut before its @, the password can't be told.
        said = scrubbed(str(error), secret_values(given))[:MAX_SAID_CHARACTERS]
        # It doesn't always say which field it means.
        fields = shown(", ".join(given))
        raise InvalidRuntimeEnv(f"Malformed runtime_env ({fields}): {said}") from None


def default_max_log_bytes(environ: Mapping[str, str]) -> int | None:
    """Return what the log of a job may take that says nothing of it; None for no bound."""
    found = number(environ, "RAY_JOBS_MAX_LOG_BYTES", 0)
    return max(int(found), MIN_MAX_LOG_BYTES) if found else None


def leave() -> None:
    """End this process: another manager has taken over, and this one may do no harm."""
    logger.error("Another JobManager has taken over; leaving.")
    os._exit(1)
