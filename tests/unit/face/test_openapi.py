"""The OpenAPI document says what the routes are, no more and no less."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from ray_jobs.dashboard_module.errors import ErrorAnswer
from ray_jobs.dashboard_module.routes import ROUTES
from ray_jobs.dashboard_module.routes.openapi import document
from ray_jobs.dashboard_module.routes.own import DEFAULT_PAGE_JOBS, MAX_PAGE_JOBS, ServerInfo

from ray_jobs import models
from ray_jobs.models import JobStatus, JobType
from ray_jobs.runtime_env_fields import KNOWN_FIELDS
from ray_jobs.validation import MAX_ARGUMENT_BYTES, MAX_QUANTITY, MAX_SUBMISSION_ID_BYTES

from .fakes import Client

DOCUMENT: dict[str, Any] = json.loads(document())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
METHODS = {"get", "put", "post", "delete"}


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_every_route_is_in_it_and_the_reverse() -> None:
    described = {key: operation["operationId"] for key, operation in operations().items()}
    assert described == {(route.method, route.path): route.name for route in ROUTES}


def test_paths_name_their_parameters() -> None:
    for path, item in DOCUMENT["paths"].items():
        named = set(re.findall(r"{(\w+)}", path))
        given = [resolved(each) for each in item.get("parameters", [])]
        assert {each["name"] for each in given if each["in"] == "path"} == named


def test_every_operation_says_how_it_fails() -> None:
    for (_, path), operation in operations().items():
        statuses = set(operation["responses"])
        assert {"401", "403", "429", "503"} <= statuses
        assert ("404" in statuses) is (
            "{job_id}" in path or operation["operationId"] == "get_package"
        )
        for status, response in operation["responses"].items():
            media = set(resolved(response).get("content", {}))
            if status in ("400", "404", "409", "413"):
                ours = path.startswith(models.API_PREFIX)
                assert media == {"application/json" if ours else "text/plain"}


@pytest.mark.parametrize(
    ("name", "struct"),
    [
        ("DriverInfo", models.DriverInfo),
        ("Job", models.JobInfo),
        ("JobDetails", models.JobDetails),
        ("JobPage", models.JobPage),
        ("SubmitRequest", models.SubmitRequest),
        ("SubmitResponse", models.SubmitResponse),
        ("StopResponse", models.StopResponse),
        ("DeleteResponse", models.DeleteResponse),
        ("LogsResponse", models.LogsResponse),
        ("VersionInfo", models.VersionInfo),
        ("ServerInfo", ServerInfo),
        ("Error", ErrorAnswer),
    ],
)
def test_fields_are_those_of_the_wire(name: str, struct: type[msgspec.Struct]) -> None:
    fields = [field.encode_name for field in msgspec.structs.fields(struct)]
    assert list(SCHEMAS[name]["properties"]) == fields
    # What a client sends may hold fields that we don't know, as long as they say nothing.
    others = {"type": "null"} if name == "SubmitRequest" else False
    assert SCHEMAS[name]["additionalProperties"] == others


def test_values_and_limits_are_those_of_the_server() -> None:
    assert SCHEMAS["JobStatus"]["enum"] == [str(status) for status in JobStatus]
    assert SCHEMAS["Job"]["properties"]["type"]["enum"] == [str(each) for each in JobType]
    assert set(SCHEMAS["RuntimeEnv"]["properties"]) == KNOWN_FIELDS
    submission = SCHEMAS["SubmitRequest"]["properties"]
    assert submission["entrypoint"]["maxLength"] == MAX_ARGUMENT_BYTES
    assert submission["entrypoint_memory"]["maximum"] == MAX_QUANTITY
    assert SCHEMAS["SubmissionId"]["maxLength"] == MAX_SUBMISSION_ID_BYTES
    page = operations()[("GET", f"{models.API_PREFIX}/jobs")]["parameters"]
    limit = next(each["schema"] for each in page if each["name"] == "limit")
    assert (limit["maximum"], limit["default"]) == (MAX_PAGE_JOBS, DEFAULT_PAGE_JOBS)


async def test_it_is_served(client: Client) -> None:
    async with client.get(f"{models.API_PREFIX}/openapi.json") as answer:
        assert answer.status == 200
        assert answer.content_type == "application/json"
        assert await answer.json() == DOCUMENT


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference points to."""
    found: Any = item
    if "$ref" in item:
        found = DOCUMENT
        for step in item["$ref"].removeprefix("#/").split("/"):
            found = found[step]
    return dict(found)
