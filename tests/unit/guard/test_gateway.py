"""The gateway's own application: what it serves without a token, and to any name.

Asked is what its router has, not what our table of routes says: one that was added beside the table
would be open to everybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from ray._private.authentication import authentication_utils
from ray_jobs.dashboard_module.gateway import make_app
from ray_jobs.dashboard_module.routes import ROUTES

from ray_jobs import _ray
from tests.unit.face.fakes import Cluster

from .conftest import Guarded, serving

#: All that is open, by method and path. It tells that the gateway lives, and nothing else.
OPEN = {"GET /", "HEAD /", "GET /api/healthz", "HEAD /api/healthz"}
TOKEN = "0123456789abcdef" * 4
RIGHT, WRONG = f"Bearer {TOKEN}", "Bearer " + "f" * 64


class RaysVerdict:
    """Stands in for Ray's own comparison: says what a test has it say, whatever it is asked."""

    def __init__(self) -> None:
        self.is_valid = False
        self.asked: list[str] = []

    def __call__(self, authorization: str) -> bool:
        self.asked.append(authorization)
        return self.is_valid


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> RaysVerdict:
    verdict = RaysVerdict()
    monkeypatch.setattr(_ray, "is_token_auth_enabled", lambda: True)
    monkeypatch.setattr(authentication_utils, "validate_request_token", verdict)
    # Whoever compares by himself finds the right one here.
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return verdict


@pytest.fixture
async def gateway(cluster: Cluster, verdict: RaysVerdict) -> AsyncIterator[Guarded]:
    async with serving(cluster, demands_token=True, make_app=make_app, allowed_hosts=()) as guarded:
        yield guarded


def served(gateway: Guarded) -> Iterator[tuple[str, str]]:
    """Yield method and path of all that the router has."""
    for route in gateway.client.app.router.routes():
        assert route.resource is not None
        yield route.method, route.resource.canonical


async def statuses(gateway: Guarded, headers: dict[str, str]) -> dict[str, int]:
    """Return the status of all that the router has, by method and path; WebSockets too."""
    found = {}
    for method, path in served(gateway):
        url = path.format(job_id="nobody", protocol="gcs", name="no.zip")
        async with gateway.client.request(method, url, headers=headers) as answer:
            found[f"{method} {path}"] = answer.status
        if method == "GET":  # whether it is one or not: that is asked for as one
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await gateway.client.ws_connect(url, headers=headers)
            found[f"{method} {path} (WebSocket)"] = caught.value.status
    return found


def those_not(status: int, found: dict[str, int]) -> set[str]:
    return {name for name, each in found.items() if each != status}


OPEN_ALSO_AS_WEBSOCKETS = OPEN | {f"{name} (WebSocket)" for name in OPEN if name[:3] == "GET"}


async def test_all_that_is_served(gateway: Guarded) -> None:
    ours = {f"{route.method} {route.path}" for route in ROUTES}
    ours |= {f"HEAD {route.path}" for route in ROUTES if route.method == "GET"}
    assert {f"{method} {path}" for method, path in served(gateway)} == ours | OPEN


async def test_a_token_is_demanded_of_everything_else(
    gateway: Guarded, verdict: RaysVerdict
) -> None:
    assert those_not(401, await statuses(gateway, {})) == OPEN_ALSO_AS_WEBSOCKETS
    assert verdict.asked == []
    found = await statuses(gateway, {"Authorization": WRONG})
    assert those_not(403, found) == OPEN_ALSO_AS_WEBSOCKETS
    assert verdict.asked == [WRONG] * (len(found) - len(OPEN_ALSO_AS_WEBSOCKETS))
    for path in ("/nothing", "/api", "/api/healthz/", "/api/jobs"):
        async with gateway.client.get(path) as answer:
            assert answer.status == 401, path
    verdict.is_valid = True
    found = await statuses(gateway, {"Authorization": WRONG})
    assert not {401, 403} & set(found.values())


async def test_the_name_in_host_is_looked_at_by_everything_else(
    gateway: Guarded, verdict: RaysVerdict
) -> None:
    verdict.is_valid = True
    found = await statuses(gateway, {"Authorization": RIGHT, "Host": "evil.example"})
    assert those_not(403, found) == OPEN_ALSO_AS_WEBSOCKETS


async def test_what_is_open_says_nothing(gateway: Guarded) -> None:
    words = {}
    for name in OPEN:
        method, path = name.split()
        async with gateway.client.request(method, path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 200, name
            words[name] = await answer.text()
    assert words == {
        "GET /": "ray-jobs gateway: the jobs API is under /api/jobs/\n",
        "GET /api/healthz": "success",
        "HEAD /": "",
        "HEAD /api/healthz": "",
    }


async def test_ray_alone_judges_tokens(gateway: Guarded, verdict: RaysVerdict) -> None:
    """So that its comparison, which takes the same time whatever is wrong, is the only one."""
    sent = {
        "Authorization": [RIGHT, WRONG, f"Basic {TOKEN}", "x"],
        "X-Ray-Authorization": [RIGHT, WRONG],
        "Cookie": [f"ray-authentication-token={TOKEN}"],
    }
    for is_valid, status in ((False, 403), (True, 200)):
        verdict.is_valid = is_valid
        for name, values in sent.items():
            for value in values:
                verdict.asked.clear()
                async with gateway.client.get("/api/jobs/", headers={name: value}) as answer:
                    assert answer.status == status, (name, value)
                asked = RIGHT if name == "Cookie" else value
                assert verdict.asked == [asked]
