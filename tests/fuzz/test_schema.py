"""Every route, asked with what schemathesis makes of our own OpenAPI document."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from ray_jobs.dashboard_module.routes.openapi import document
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.fuzz.server import DONE, DRIVER, PENDING, RUNNING, Server

SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LONG_SETTINGS = settings(SETTINGS, max_examples=500, derandomize=False)
#: Jobs that are there: chance would never find them.
KNOWN_IDS = (RUNNING, DONE, PENDING, DRIVER)
MAX_WAIT_S = 0.05
REQUEST_TIMEOUT_S = 30.0
TOO_LONG = "Got more than 8190 bytes"


def our_schema() -> OpenApiSchema:
    """Return what schemathesis makes of our document, but for one pattern.

    Beside so large a `maxLength` that takes it 20 s of CPU, before the first test.
    """
    found = json.loads(document())
    del found["components"]["schemas"]["SubmitRequest"]["properties"]["entrypoint"]["pattern"]
    return schemathesis.openapi.from_dict(found)


schema = our_schema()


def steer(case: Any) -> None:
    """Have half of the requests meet a job that is there, and none wait for long."""
    parameters = case.path_parameters or {}
    text = str(parameters.get("job_id", ""))
    chance = zlib.crc32(text.encode(errors="replace"))
    if text and chance % 2:
        case.path_parameters["job_id"] = KNOWN_IDS[chance // 2 % len(KNOWN_IDS)]
    if case.operation.path.endswith("/wait"):
        case.query = dict(case.query or {})
        wanted = case.query.get("timeout_s", "30")
        try:
            is_long = float(wanted) > MAX_WAIT_S
        except (TypeError, ValueError):
            is_long = False
        if is_long:
            case.query["timeout_s"] = MAX_WAIT_S


def only_known_server_errors(response: Any) -> None:
    """A duplicate id is the one 5xx: clients in the field look for that."""
    if response.status_code >= 500:
        assert response.status_code == 500, response.text
        assert "Please use a different submission_id" in response.text, response.text


def ask(case: Any, server: Server) -> None:
    steer(case)
    response = case.call(base_url=server.url, timeout=REQUEST_TIMEOUT_S)
    only_known_server_errors(response)
    assert "Traceback" not in response.text
    if response.status_code == 400 and response.text.startswith(TOO_LONG):
        return  # by aiohttp, before there is a route
    # What is valid by the schema may still be refused: for the job's state, a size in bytes, a NUL.
    case.validate_response(response, excluded_checks=[not_a_server_error, positive_data_acceptance])


@schema.parametrize()
@SETTINGS
def test_every_route(case: Any, server: Server) -> None:
    ask(case, server)


@pytest.mark.long
@schema.parametrize()
@LONG_SETTINGS
def test_every_route_for_long(case: Any, server: Server) -> None:
    ask(case, server)
