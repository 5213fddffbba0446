"""What code written for `ray.job_submission` catches is caught with our clients too."""

from __future__ import annotations

import pickle

import pytest

from ray_jobs import AsyncJobSubmissionClient, JobSubmissionClient, errors


def test_nobody_there_is_a_connection_error() -> None:
    with (
        JobSubmissionClient("http://127.0.0.1:1") as client,
        pytest.raises(ConnectionError) as caught,
    ):
        client.list_jobs()
    assert isinstance(caught.value, errors.ServerUnreachable)
    assert isinstance(caught.value, RuntimeError)


async def test_a_bad_argument_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="address of a job server"):
        JobSubmissionClient("ftp://host")
    async with AsyncJobSubmissionClient("http://127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="runtime_env"):
            await client.submit_job(entrypoint="true", runtime_env={"pip": 1})


@pytest.mark.parametrize("error_class", errors.error_classes().values())
def test_they_survive_other_processes(error_class: type[errors.RayJobsError]) -> None:
    error = pickle.loads(pickle.dumps(error_class("words", hint="help")))
    assert (str(error), error.message, error.hint) == ("words", "words", "help")
