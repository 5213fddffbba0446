"""One shared cluster with the plugin enabled, and the clients that talk to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.clusters.conftest import no_settings_of_the_developer

__all__ = ["no_settings_of_the_developer"]

COMMAND_TIMEOUT_S = 120.0


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    # A job's own variables win over the node's, which these tests show.
    env = {"NODE_VARIABLE": "from the node", "RAY_JOB_STOP_WAIT_TIME_S": "2"}
    with plugin(enabled=True), running_cluster(env, cpus=4, gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        yield client


@pytest.fixture(scope="package")
def stock(cluster: Cluster) -> Any:
    """Ray's own client, against our server."""
    from ray.job_submission import JobSubmissionClient as StockClient

    return StockClient(cluster.address)


RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="package")
def run_command(cluster: Cluster) -> RunCommand:
    """Run a command of this environment with the cluster's address set."""

    def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env={**cluster.env, "RAY_ADDRESS": cluster.address, **(env or {})},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
        )

    return run
