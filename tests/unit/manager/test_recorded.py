"""What managers of earlier versions stored, said and were told, on real clusters.

A file for each version, by `tests/recorded/record.py`. A format that changes so that one of them
can't be read any more breaks clusters that are upgraded.
"""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.claims import EPOCH_PREFIX, KV_NAMESPACE, Claim, latest_claim
from ray_jobs.manager import transitions
from ray_jobs.manager.journal import Journal
from ray_jobs.mirror import MIRROR_KEY_PREFIX, MIRROR_NAMESPACE
from ray_jobs.records import (
    MIRROR_FIELDS,
    JobRecord,
    decode_batch,
    decode_record,
    decode_reply,
    encode_record,
    mirror_json,
)
from ray_jobs.store import RECORD_PREFIX
from tests.recorded.record import messages, orders_of

from .memory_kv import MemoryKv, claimed

FOLDER = Path(__file__).parents[2] / "recorded"


@pytest.fixture(params=sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text())
    return found


def record_of(fields: dict[str, Any]) -> JobRecord:
    return decode_record(json.dumps(fields).encode())


async def test_all_jobs_are_taken_over(kv: MemoryKv, recorded: dict[str, Any]) -> None:
    claim = Claim(recorded["version"], "an-actor")
    kv.data[KV_NAMESPACE, f"{EPOCH_PREFIX}1"] = claim.encoded()
    for name, fields in recorded["records"].items():
        kv.data[KV_NAMESPACE, RECORD_PREFIX + name] = json.dumps(fields).encode()
        mirror = json.dumps(recorded["mirror"][name]).encode()
        kv.data[MIRROR_NAMESPACE, MIRROR_KEY_PREFIX + name] = mirror
    assert await latest_claim(kv) == claim
    store = await claimed(kv)
    found = {each.submission_id: each for each in await store.load()}
    assert found.keys() == recorded["records"].keys()
    assert not any(each.foreign for each in found.values())
    journal = Journal(store, 2, on_superseded=lambda: None)
    journal.seed(list(found.values()))
    live = {name for name, each in found.items() if each.is_live}
    assert live == {"pending", "placed", "running-0", "running-7"}
    # The rest of their lives.
    by_attempt = {each.attempt: each for each in found.values()}
    for attempt, told in recorded["reports"].items():
        name = by_attempt[attempt].submission_id
        concluded = functools.partial(transitions.concluded, outcome=told["report"], now_ms=0)
        ended = await journal.update(name, concluded)
        assert ended is not None
        assert json.loads(kv.data[KV_NAMESPACE, RECORD_PREFIX + name]) == json.loads(
            encode_record(ended)
        )
        later = record_of(recorded["records_later"][name])
        for field in ("status", "driver_exit_code", "message", "error_type", "end_time"):
            assert getattr(ended, field) == getattr(later, field), (name, field)
    assert len(recorded["reports"]) == 3
    await journal.close()


def test_no_field_is_lost(recorded: dict[str, Any]) -> None:
    for fields in (*recorded["records"].values(), *recorded["records_later"].values()):
        assert json.loads(encode_record(record_of(fields))) == fields


def test_rays_form_is_the_same(recorded: dict[str, Any]) -> None:
    for name, fields in recorded["records"].items():
        known = frozenset(MIRROR_FIELDS)
        assert json.loads(mirror_json(record_of(fields), known)) == recorded["mirror"][name]


def test_orders_have_what_earlier_supervisors_read(recorded: dict[str, Any]) -> None:
    orders = orders_of(recorded["records"])
    for name, earlier in recorded["orders"].items():
        assert {key: orders[name][key] for key in earlier} == earlier


def test_messages_of_earlier_faces_and_managers(recorded: dict[str, Any]) -> None:
    for name, decode in (("batch", decode_batch), ("reply", decode_reply)):
        assert decode(base64.b64decode(recorded["messages"][name])) == messages()[name]
