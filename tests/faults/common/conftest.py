"""Two clusters for all tests of this folder, which differ in how jobs are supervised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_jobs import JobSubmissionClient
from tests.cluster import Cluster, plugin, running_cluster
from tests.faults.common.modes import MODES, SHARED, Mode
from tests.faults.supervisors import wait_for_idle_supervisors


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long_if_shared") is not None:
            assert isinstance(item, pytest.Function)
            if item.callspec.params["cluster"] == SHARED:
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="package", params=list(MODES))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    mode = MODES[request.param]
    with plugin(enabled=True), running_cluster(mode.env, cpus=2) as cluster:
        with JobSubmissionClient(cluster.address) as client:  # manager and pool start with it
            client.wait_until_finish(client.submit_job(entrypoint="true"), timeout=60)
        wait_for_idle_supervisors(mode.idle)
        yield cluster


@pytest.fixture
def supervision(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["cluster"])


@pytest.fixture
def mode(supervision: str) -> Mode:
    return MODES[supervision]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[JobSubmissionClient]:
    with JobSubmissionClient(cluster.address) as client:
        yield client
