"""`ray-jobs submit` and `ray-jobs run`."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli import outcome
from ray_jobs.cli.follow import follow_to_the_end, say_commands
from ray_jobs.cli.options import (
    Connection,
    Decorated,
    address_from_environment,
    connection_options,
)
from ray_jobs.cli.param_types import ByteSize, JsonObject, Number, complete_path
from ray_jobs.cli.terminal import UploadProgress, print_error, say
from ray_jobs.errors import RayJobsError

if TYPE_CHECKING:
    from ray_jobs.client import JobSubmissionClient

HOOK_VARIABLE = "RAY_JOB_SUBMIT_HOOK"


@dataclass(frozen=True)
class Submission:
    """What the user wants to be submitted, as the command line said it."""

    entrypoint: tuple[str, ...]
    submission_id: str | None
    job_id: str | None
    runtime_env: str | None
    runtime_env_json: dict[str, Any] | None
    working_dir: str | None
    metadata_json: dict[str, Any] | None
    entrypoint_num_cpus: float | None
    entrypoint_num_gpus: float | None
    entrypoint_memory: int | None
    entrypoint_resources: dict[str, Any] | None
    entrypoint_label_selector: dict[str, Any] | None
    max_log_bytes: int | None

    def merged_runtime_env(self) -> dict[str, Any] | None:
        """Return the runtime environment that the options make together."""
        if self.runtime_env is not None and self.runtime_env_json is not None:
            raise click.UsageError("Give --runtime-env or --runtime-env-json, not both.")
        merged = dict(self.runtime_env_json or {})
        if self.runtime_env is not None:
            merged = _read_runtime_env(self.runtime_env)
        if self.working_dir is not None:
            if merged.get("working_dir") not in (None, self.working_dir):
                say("--working-dir takes the place of the runtime environment's working_dir.")
            merged["working_dir"] = self.working_dir
        return merged or None

    def submit(self, client: JobSubmissionClient, say_interrupted: Callable[[str], None]) -> str:
        """Submit it, and return the job's id.

        Args:
            say_interrupted: Called when Ctrl-C comes while the job may or may not exist, with the
                id that it would have.
        """
        runtime_env = self.merged_runtime_env()
        sent: list[str] = []
        try:
            with UploadProgress() as progress:
                return client.submit_job(
                    entrypoint=shlex.join(self.entrypoint),
                    submission_id=self.submission_id or self.job_id,
                    runtime_env=runtime_env,
                    metadata=self.metadata_json,
                    entrypoint_num_cpus=self.entrypoint_num_cpus,
                    entrypoint_num_gpus=self.entrypoint_num_gpus,
                    entrypoint_memory=self.entrypoint_memory,
                    entrypoint_resources=self.entrypoint_resources,
                    entrypoint_label_selector=self.entrypoint_label_selector,
                    max_log_bytes=self.max_log_bytes,
                    on_progress=progress,
                    on_sending=sent.append,
                )
        except KeyboardInterrupt:
            if sent:
                say_interrupted(sent[0])
            else:
                print_error("interrupted. Nothing was submitted.")
            raise click.exceptions.Exit(outcome.INTERRUPTED) from None


def _sayer_of_interrupts(connection: Connection) -> Callable[[str], None]:
    """Return what says that a job may have been submitted, and how to stop it then."""

    def say_interrupted(job_id: str) -> None:
        print_error(
            f"interrupted. The job may have been submitted as {job_id}.",
            f"Stop it with: {connection.command('stop', job_id)}",
        )
        if note := connection.left_out():
            say(f"({note})")

    return say_interrupted


def _read_runtime_env(path: str) -> dict[str, Any]:
    import yaml

    option = "'--runtime-env'"
    try:
        with open(path, encoding="utf-8") as file:
            parsed = yaml.safe_load(file)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}.", param_hint=option) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not YAML: {error}", param_hint=option) from error
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise click.BadParameter(f"{path} must hold a mapping.", param_hint=option)
    return parsed


def _call_hook(submission: Submission, connection: Connection, no_wait: bool) -> None:
    """Call what RAY_JOB_SUBMIT_HOOK names, as Ray's own `ray job submit` does."""
    path = os.environ.get(HOOK_VARIABLE)
    if not path:
        return
    given_id = submission.submission_id or submission.job_id
    module_name, _, name = path.rpartition(".")
    try:
        hook = getattr(importlib.import_module(module_name), name)
        hook(
            address=connection.address,
            job_id=given_id,
            submission_id=given_id,
            runtime_env=submission.runtime_env,
            runtime_env_json=_as_text(submission.runtime_env_json),
            metadata_json=submission.metadata_json,
            working_dir=submission.working_dir,
            entrypoint=submission.entrypoint,
            entrypoint_num_cpus=submission.entrypoint_num_cpus,
            entrypoint_num_gpus=submission.entrypoint_num_gpus,
            entrypoint_memory=submission.entrypoint_memory,
            entrypoint_resources=submission.entrypoint_resources,
            entrypoint_label_selector=submission.entrypoint_label_selector,
            no_wait=no_wait,
        )
    except Exception as error:
        raise RayJobsError(
            f"The submit hook {path} failed: {type(error).__name__}: {error}",
            hint=f"It is named by the environment variable {HOOK_VARIABLE}.",
        ) from error


def _as_text(value: dict[str, Any] | None) -> str | None:
    """Return an object as the JSON that the user wrote, which is what hooks are given."""
    import json

    return None if value is None else json.dumps(value)


_SUBMISSION_OPTIONS: list[Callable[[Decorated], Decorated]] = [
    click.option("--submission-id", metavar="ID", help="Id of the job. Default: a new one."),
    click.option("--job-id", metavar="ID", help="Deprecated: the same as --submission-id."),
    click.option(
        "--runtime-env",
        metavar="FILE",
        shell_complete=complete_path,
        help="YAML file with the runtime environment.",
    ),
    click.option(
        "--runtime-env-json",
        type=JsonObject('{"pip": ["requests"]}'),
        help="The runtime environment as JSON.",
    ),
    click.option(
        "--working-dir",
        metavar="DIR|URI",
        shell_complete=complete_path,
        help="Directory or .zip to upload, or remote URI, that the job runs in.",
    ),
    click.option(
        "--metadata-json",
        type=JsonObject('{"team": "a"}', of="strings"),
        help="Metadata of the job, as JSON.",
    ),
    click.option(
        "--entrypoint-num-cpus",
        type=Number(endless=False),
        help="CPUs to reserve for the entrypoint.",
    ),
    click.option(
        "--entrypoint-num-gpus",
        type=Number(endless=False),
        help="GPUs to reserve for the entrypoint.",
    ),
    click.option(
        "--entrypoint-memory",
        type=click.IntRange(min=0),
        help="Memory to reserve for the entrypoint, in bytes.",
    ),
    click.option(
        "--entrypoint-resources",
        type=JsonObject('{"special": 1}', of="numbers"),
        help="Custom resources to reserve for the entrypoint, as JSON.",
    ),
    click.option(
        "--entrypoint-label-selector",
        type=JsonObject('{"ray.io/market-type": "spot"}', of="strings"),
        help="Labels of the node that the entrypoint is to run on, as JSON.",
    ),
    click.option(
        "--max-log-bytes",
        type=ByteSize(),
        help="What the job's log may take, as 100MB: its middle is dropped beyond that.",
    ),
    click.option(
        "--stop-on-interrupt",
        is_flag=True,
        help="Let the first Ctrl-C stop the job, rather than leave it running.",
    ),
]


def _check_entrypoint(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> tuple[str, ...]:
    if words and not words[0].strip():
        raise click.BadParameter("the command is empty.", ctx=ctx, param=param)
    return words


def submission_options(function: Decorated) -> Decorated:
    """Add the options that say what to submit; the command gets them as `submission`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        fields = {name: kwargs.pop(name) for name in Submission.__dataclass_fields__}
        if fields["job_id"]:
            say("--job-id is deprecated: use --submission-id.")
        return function(*args, submission=Submission(**fields), **kwargs)

    wrapped: Any = click.argument(
        "entrypoint",
        nargs=-1,
        required=True,
        type=click.UNPROCESSED,
        metavar="-- ENTRYPOINT...",
        callback=_check_entrypoint,
        shell_complete=complete_path,
    )(wrapper)
    for option in reversed(_SUBMISSION_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


@click.command()
@submission_options
@click.option("--no-wait", is_flag=True, help="Print the job's id and return at once.")
@connection_options
@click.pass_context
def submit(
    ctx: click.Context,
    submission: Submission,
    no_wait: bool,
    stop_on_interrupt: bool,
    connection: Connection,
) -> None:
    """Submit a job, follow its log, and exit as it does.

    stdout gets the job's log and nothing else (with --no-wait: the job's id), stderr all other
    words. The exit code is the entrypoint's own (128 + N when signal N ended it); 1 if the job was
    stopped, or failed before it had an exit code.

    Ctrl-C leaves the job running; a second Ctrl-C within 2 s stops it.

    \b
    Example:
        ray-jobs submit --working-dir . -- python script.py --epochs 3
    """
    _call_hook(submission, connection, no_wait)
    with connection.client() as client:
        job_id = submission.submit(client, _sayer_of_interrupts(connection))
        if no_wait:
            click.echo(job_id)
        say(f"Job {job_id} submitted.")
        say_commands(job_id, connection)
        if not no_wait:
            code = follow_to_the_end(
                client, job_id, connection, stop_on_interrupt=stop_on_interrupt
            )
            ctx.exit(code)


@click.command()
@submission_options
@connection_options
@click.pass_context
def run(
    ctx: click.Context,
    submission: Submission,
    stop_on_interrupt: bool,
    connection: Connection,
) -> None:
    """Submit a job to the cluster at hand, or to one that lives as long as the job.

    With an --address (or one in the environment), or a cluster that answers at
    http://127.0.0.1:8265, this is `submit`. Otherwise (or with --address local) a cluster is
    started on this machine for the job, and stopped after it; Ctrl-C then stops the job. That
    needs Ray: `pip install ".[server]"` from a clone of the repository.

    \b
    Example:
        ray-jobs run -- python script.py
    """
    _call_hook(submission, connection, no_wait=False)
    if _finds_cluster(connection):
        with connection.client() as client:
            say(f"Using the cluster at {client.address}.")
            job_id = submission.submit(client, _sayer_of_interrupts(connection))
            say(f"Job {job_id} submitted.")
            code = follow_to_the_end(
                client, job_id, connection, stop_on_interrupt=stop_on_interrupt
            )
            ctx.exit(code)
    # Before the seconds that a cluster takes to start.
    submission.merged_runtime_env()
    ctx.exit(_run_on_local_cluster(submission))


def _finds_cluster(connection: Connection) -> bool:
    """Return whether there is a cluster to use: one that is named, or one that answers here."""
    from ray_jobs.cli.local_cluster import DEFAULT_ADDRESS, answers

    named = connection.address or address_from_environment()
    # Ray's words for "whichever runs on this machine" and "a new one".
    if named in (None, "auto", "local"):
        return named != "local" and answers(DEFAULT_ADDRESS)
    return True


def _run_on_local_cluster(submission: Submission) -> int:
    from ray_jobs.cli.local_cluster import LocalCluster

    with LocalCluster() as cluster:
        connection = Connection(cluster.url, verify=True, headers=None)
        with connection.client() as client:
            job_id = submission.submit(client, lambda _: print_error("interrupted."))
            say(f"Job {job_id} submitted.")
            return follow_to_the_end(
                client, job_id, connection, stop_on_interrupt=True, job_outlives_us=False
            )
