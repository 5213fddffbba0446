"""Making, finding and ending the supervisor actors."""

from __future__ import annotations

import asyncio
import copy
import os
import time
import uuid
from typing import Any

import ray
import ray.cloudpickle
import ray.util
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs import _ray, supervisor
from ray_jobs.claims import VERSION
from ray_jobs.keeper import zygote_source
from ray_jobs.log_files import log_name
from ray_jobs.manager.calls import in_thread, patiently
from ray_jobs.manager.environments import Built
from ray_jobs.records import JobRecord
from ray_jobs.scrubbing import scrubbed, secret_values
from ray_jobs.validation import JOB_CONFIG_ENV_VAR, job_config_json

#: A supervisor waits for the ends of its jobs and for orders at once.
MAX_CONCURRENCY = 1000
#: Ray's label of a node's id is private; the head carries this resource under a public name.
HEAD_RESOURCE = "node:__internal_head__"
HEAD_RESOURCE_SHARE = 0.0001
#: How long a new supervisor waits for its name while Ray still ends the one that had it.
NAME_TIMEOUT_S = 15.0
NAME_RETRY_S = 0.05


#: For a supervisor of the job's own: Ray has started it in the job's environment.
IN_ITS_ENVIRONMENT = Built({}, [])


def _supervisor_class() -> Any:
    # By value (rule 8): ray_jobs isn't installed where a supervisor may run.
    for module in supervisor.MODULES:
        ray.cloudpickle.register_pickle_by_value(module)
    return ray.remote(supervisor.actor.JobSupervisor)


#: Of the pool's supervisors that have the code of this version.
CURRENT_PREFIX = f"{_ray.POOLED_SUPERVISOR_NAME_PREFIX}{VERSION}_"
#: Read where a job is stopped, from its own `env_vars` before the node's environment.
STOP_ENV_VARS = ("RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S")


class Supervisors:
    """The supervisor actors of this cluster: those of single jobs, and those of the pool.

    Args:
        default_env: Variables of entrypoints where their jobs don't set them.
        drops_copied_logs: Logs of jobs on other nodes are removed there once they are on the head.
    """

    def __init__(self, default_env: dict[str, str], *, drops_copied_logs: bool = False) -> None:
        self._class = _supervisor_class()
        self._zygote_source = zygote_source()
        self._drop_env = _ray.internal_env_vars()
        self._default_env = default_env
        self._drops_copied_logs = drops_copied_logs

    async def create(self, record: JobRecord, log_path: str) -> Any:
        """Return a new supervisor in the job's runtime environment, placed as the job asks.

        It may take long to come to life: the call itself doesn't wait.
        """
        resources = dict(record.entrypoint_resources or {})
        options: dict[str, Any] = {}
        if not needs_own_supervisor(record):
            resources[HEAD_RESOURCE] = HEAD_RESOURCE_SHARE
        if record.entrypoint_memory:
            options["memory"] = record.entrypoint_memory
        if record.entrypoint_label_selector:
            options["label_selector"] = record.entrypoint_label_selector
        return await self._new_for_job(
            record.submission_id,
            num_cpus=record.entrypoint_num_cpus or 0,
            num_gpus=record.entrypoint_num_gpus or 0,
            resources=resources,
            runtime_env=supervisor_runtime_env(record, log_path),
            **options,
        )

    async def create_adopter(self, record: JobRecord) -> Any:
        """Return a new supervisor on the node where the job runs already.

        It reserves nothing, and doesn't run in the job's environment.
        """
        assert record.driver_node_id is not None
        return await self._new_for_job(
            record.submission_id,
            adopts_only=True,
            num_cpus=0,
            runtime_env=plain_runtime_env(),
            scheduling_strategy=NodeAffinitySchedulingStrategy(record.driver_node_id, soft=False),
        )

    async def create_pooled(self) -> Any:
        """Return a new supervisor on the head for whichever jobs it is given."""
        name = CURRENT_PREFIX + uuid.uuid4().hex
        try:
            return await in_thread(
                self._register,
                name,
                _ray.NAMESPACE,
                num_cpus=0,
                resources={HEAD_RESOURCE: HEAD_RESOURCE_SHARE},
                runtime_env=plain_runtime_env(),
            )
        except ActorAlreadyExistsError:  # by a try whose answer was lost
            made = await self.find_pooled(name)
            if made is None:
                raise
            return made

    async def _new_for_job(
        self, submission_id: str, *, adopts_only: bool = False, **options: Any
    ) -> Any:
        deadline = time.monotonic() + NAME_TIMEOUT_S
        name = _ray.SUPERVISOR_NAME_PREFIX + submission_id
        while True:
            try:
                return await in_thread(
                    self._register,
                    name,
                    _ray.SUPERVISOR_NAMESPACE,
                    adopts_only=adopts_only,
                    **options,
                )
            except (ActorAlreadyExistsError, ValueError) as error:
                predecessor = await self.find(submission_id)
                if predecessor is None and "name" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise
                # Of a job that has ended, or of one that died: Ray frees its name in a moment,
                # and tells nobody when.
                if predecessor is not None:
                    await self.end(predecessor)
                await asyncio.sleep(NAME_RETRY_S)

    def _register(
        self, name: str, namespace: str, *, adopts_only: bool = False, **options: Any
    ) -> Any:
        """Make a supervisor actor. Blocking: registering a name waits for the GCS."""
        return self._class.options(
            name=name,
            namespace=namespace,
            # Detached, or it would die with the manager that owns it.
            lifetime="detached",
            max_concurrency=MAX_CONCURRENCY,
            # Users don't know about this actor: keep it out of their task events.
            enable_task_events=False,
            **options,
        ).remote(self._zygote_source, adopts_only, VERSION)

    async def find(self, submission_id: str) -> Any | None:
        """Return the supervisor that an earlier manager made for a job, or None."""
        name = _ray.SUPERVISOR_NAME_PREFIX + submission_id
        return await self._find(name, _ray.SUPERVISOR_NAMESPACE)

    async def find_pooled(self, name: str) -> Any | None:
        """Return a supervisor of the pool that an earlier manager made, or None."""
        return await self._find(name, _ray.NAMESPACE)

    async def _find(self, name: str, namespace: str) -> Any | None:
        try:
            return await in_thread(ray.get_actor, name, namespace=namespace)
        except ValueError:
            return None

    async def unborn(self) -> set[str]:
        """Return the ids of actors that haven't come to life: none of them has a job."""
        found: set[str] = await patiently(_ray.unborn_actors)
        return found

    async def end(self, handle: Any) -> None:
        """End a supervisor. What its keeper runs isn't touched by that."""
        await in_thread(ray.kill, handle, no_restart=True)

    async def names(self) -> tuple[set[str], list[str]]:
        """Return the submission ids that have a supervisor of their own, and the pool's names."""
        found = await in_thread(ray.util.list_named_actors, all_namespaces=True)
        of_jobs = {
            each["name"].removeprefix(_ray.SUPERVISOR_NAME_PREFIX)
            for each in found
            if each["namespace"] == _ray.SUPERVISOR_NAMESPACE
        }
        pooled = [
            each["name"]
            for each in found
            if each["namespace"] == _ray.NAMESPACE
            and each["name"].startswith(_ray.POOLED_SUPERVISOR_NAME_PREFIX)
        ]
        return of_jobs, pooled

    def order(self, record: JobRecord, built: Built = IN_ITS_ENVIRONMENT) -> dict[str, Any]:
        """Return what a supervisor must know to start or adopt the job's attempt.

        Args:
            built: The job's environment, for a supervisor that doesn't run in it.
        """
        env_vars = (record.runtime_env or {}).get("env_vars") or {}
        config = job_config_json(record.runtime_env, record.metadata, record.submission_id)
        shown = scrubbed(record.entrypoint, secret_values(record.runtime_env))
        return {
            "attempt": record.attempt,
            "entrypoint": record.entrypoint,
            "log_name": log_name(record.submission_id),
            "log_header": f"Running entrypoint for job {record.submission_id}: {shown}\n",
            "fresh_log": not record.on_head,
            "drops_copied_log": self._drops_copied_logs,
            "max_log_bytes": record.max_log_bytes,
            "stop_requested": record.stop_requested,
            "command_prefix": built.command_prefix,
            "env_vars": built.env_vars,
            "env": {JOB_CONFIG_ENV_VAR: config},
            "default_env": self._default_env,
            "drop_env": self._drop_env,
            "keeps_omp_num_threads": "OMP_NUM_THREADS" in env_vars,
            "num_cpus": record.entrypoint_num_cpus or 0,
            # An adopter doesn't run in the job's environment, where these would be found.
            "stop_env": {name: env_vars[name] for name in STOP_ENV_VARS if name in env_vars},
        }


def plain_runtime_env() -> dict[str, Any]:
    """Return the environment of a supervisor that runs in none of a job's."""
    return {"env_vars": {_ray.NICENESS_VARIABLE: "0", **_ray.KEEP_GPU_VARIABLES}}


def allows_worker_nodes() -> bool:
    """Return whether a job that reserves nothing may run anywhere, by Ray's variable for it."""
    return os.environ.get("RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES", "0") == "1"


def needs_own_supervisor(record: JobRecord) -> bool:
    """Return whether Ray must place the job: it reserves something, or may run anywhere."""
    return record.reserves_resources() or allows_worker_nodes()


def supervisor_runtime_env(record: JobRecord, log_path: str) -> dict[str, Any]:
    """Return the environment of a job's supervisor: the job's, and what only the worker needs."""
    runtime_env = copy.deepcopy(record.runtime_env or {})
    env_vars = dict(runtime_env.get("env_vars") or {})
    env_vars[_ray.NICENESS_VARIABLE] = "0"
    if not record.reserves_resources():
        env_vars.update(_ray.KEEP_GPU_VARIABLES)
    runtime_env["env_vars"] = env_vars
    if _ray.stream_env_setup_log():
        config = dict(runtime_env.get("config") or {})
        config["log_files"] = [log_path]
        runtime_env["config"] = config
    return runtime_env
