"""What a submission must look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ray_jobs.errors import InvalidRequest
from ray_jobs.validation import (
    MAX_ARGUMENT_BYTES,
    MAX_RESOURCES_CHARACTERS,
    check_submission_id,
    job_config_json,
    parse_submit_request,
)


def parse(**fields: Any) -> Any:
    return parse_submit_request(json.dumps({"entrypoint": "true", **fields}).encode())


def test_everything_at_once() -> None:
    request = parse(
        submission_id="my job",
        runtime_env={"env_vars": {"A": "1"}},
        metadata={f"key{n}": "v" * 50 for n in range(500)},
        entrypoint_num_cpus=0.5,
        entrypoint_num_gpus=1,
        entrypoint_memory=1000,
        entrypoint_resources={"custom": 1},
        entrypoint_label_selector={"a": "b"},
    )
    assert request.entrypoint_num_cpus == 0.5
    assert len(request.metadata) == 500


def test_null_is_absent() -> None:
    assert parse(job_id=None, metadata=None, runtime_env=None).metadata is None


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b"{}",
        DEEP,
        b'{"entrypoint": "true", "runtime_env": {"conda": {"a": ' + DEEP + b"}}}",
        b'{"entrypoint": "true", "entrypoint_num_cpus": NaN}',
        b'{"entrypoint": "true", "entrypoint_num_cpus": 1e999}',
    ],
)
def test_body_that_is_no_submission(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_submit_request(body)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"entrypoint": ""}, "entrypoint"),
        ({"entrypoint": "  "}, "entrypoint"),
        ({"entrypoint": 3}, "entrypoint"),
        ({"entrypoint": "a\0b"}, "NUL"),
        ({"entrypoint": "\ud800"}, "surrogate|JSON"),
        ({"entrypoint": "x" * (MAX_ARGUMENT_BYTES + 1)}, "131,072 bytes"),
        ({"entrypoint_num_cpus": True}, "entrypoint_num_cpus"),
        ({"entrypoint_num_cpus": "1"}, "entrypoint_num_cpus"),
        ({"entrypoint_num_cpus": -1}, "entrypoint_num_cpus"),
        ({"entrypoint_num_gpus": -0.1}, "entrypoint_num_gpus"),
        ({"entrypoint_num_gpus": 1e308}, "entrypoint_num_gpus"),
        ({"entrypoint_num_cpus": 10**400}, "entrypoint_num_cpus"),
        ({"entrypoint_memory": 2**63}, "entrypoint_memory"),
        ({"entrypoint_memory": -(2**70)}, "entrypoint_memory"),
        ({"entrypoint_memory": True}, "entrypoint_memory"),
        ({"entrypoint_resources": {"a": True}}, "entrypoint_resources"),
        ({"entrypoint_resources": {"": 1}}, "entrypoint_resources"),
        ({"entrypoint_resources": {"a\0b": 1}}, "entrypoint_resources"),
        ({"entrypoint_memory": 1.5}, "entrypoint_memory"),
        ({"entrypoint_resources": {"a": -1}}, "entrypoint_resources"),
        ({"entrypoint_resources": {"CPU": 1}}, "entrypoint_num_cpus"),
        ({"entrypoint_resources": ["a"]}, "entrypoint_resources"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": "a"}, "metadata"),
        ({"metadata": {"a": "x" * MAX_ARGUMENT_BYTES}}, "metadata"),
        ({"runtime_env": "a"}, "runtime_env"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, "env_vars"),
        ({"runtime_env": {"env_vars": {"A=B": "1"}}}, "env_vars"),
        ({"runtime_env": {"env_vars": []}}, "env_vars"),
        ({"runtime_env": {"env_vars": {"A": "x" * MAX_ARGUMENT_BYTES}}}, "env_vars"),
        ({"submission_id": "a/b"}, "slash"),
        ({"submission_id": "."}, "URLs"),
        ({"job_id": ".."}, "URLs"),
        ({"submission_id": "a\nb"}, "control character"),
        ({"submission_id": "x" * 10_000}, "10000 bytes"),
        ({"unknown_field": 1}, "unknown_field"),
    ],
)
def test_refusals_name_what_is_wrong(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        parse(**fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY=hunter2", ""),
        ("API_KEY=hunter2", 1),
        ("=hunter2", ""),
    ],
)
def test_a_value_that_stands_in_a_name_is_not_repeated(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(runtime_env={"env_vars": {name: value}})
    assert "hunter2" not in str(caught.value)
    assert ("API_KEY" in name) == ("'API_KEY'" in str(caught.value))


@pytest.mark.parametrize("submission_id", ["a", "a.b", "...", "\u4e16", "a b", "x" * 200])
def test_unusual_ids(submission_id: str) -> None:
    check_submission_id(submission_id)


def test_the_submission_id_of_the_user_does_not_win() -> None:
    config = json.loads(job_config_json(None, {"job_submission_id": "123", "k": "v"}, "real"))
    assert config["metadata"] == {"job_submission_id": "real", "job_name": "real", "k": "v"}
    named = json.loads(job_config_json({}, {"job_name": "mine"}, "real"))
    assert named["metadata"]["job_name"] == "mine"


MANY = 2 * 1024 * 1024 // 20


@pytest.mark.parametrize(
    "fields",
    [
        {"runtime_env": {"pip": [0] * MANY}},
        {"runtime_env": {"conda": {"a": [[[[]]]] * MANY}}},
        {"runtime_env": dict.fromkeys(map(str, range(MANY)), 0)},
        {"runtime_env": {"env_vars": dict.fromkeys(map(str, range(MANY)), "")}},
        {"metadata": dict.fromkeys(map(str, range(MANY)), "")},
        {"entrypoint_resources": dict.fromkeys(map(str, range(MANY)), 1)},
        {"entrypoint_label_selector": dict.fromkeys(map(str, range(MANY)), "a")},
        dict.fromkeys(map(str, range(MANY)), 0),
    ],
)
def test_what_would_take_long_to_look_at_is_not_looked_at(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value by itself, on the event loop of Ray's dashboard."""
    monkeypatch.setattr("ray_jobs.validation.validate", None)
    with pytest.raises(InvalidRequest, match="holds more than 47,786 values"):
        parse(**fields)


def test_as_many_values_as_a_driver_can_be_handed() -> None:
    most = (MAX_ARGUMENT_BYTES - 200) // len('"", ')
    assert len(parse(runtime_env={"pip": [""] * most}).runtime_env["pip"]) == most


@pytest.mark.parametrize("field", ["entrypoint_resources", "entrypoint_label_selector"])
def test_more_resources_than_anybody_has(field: str) -> None:
    value: Any = 1 if field == "entrypoint_resources" else "a"
    assert parse(**{field: dict.fromkeys(map(str, range(1000)), value)})
    with pytest.raises(InvalidRequest, match=f"{field} holds more than 1,000 names"):
        parse(**{field: dict.fromkeys(map(str, range(1001)), value)})


@pytest.mark.parametrize("field", ["entrypoint_resources", "entrypoint_label_selector"])
def test_longer_names_of_resources_than_anybody_has(field: str) -> None:
    value: Any = 1 if field == "entrypoint_resources" else ""
    assert parse(**{field: {"x" * MAX_RESOURCES_CHARACTERS: value}})
    with pytest.raises(InvalidRequest, match=f"{field} holds names of more than 65,536 char"):
        parse(**{field: {"x" * MAX_RESOURCES_CHARACTERS: value, "y": value}})
    with pytest.raises(InvalidRequest, match="entrypoint_label_selector holds names of more"):
        parse(entrypoint_label_selector={"a": "x" * MAX_RESOURCES_CHARACTERS})


def test_names_that_are_fine_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """How they would be shown in a refusal: a body of such names takes long to scrub."""
    monkeypatch.setattr("ray_jobs.validation.shown", None)
    name = "://user:password@host?" + "a?b=c&" * 100
    parse(
        entrypoint_resources={name: 1},
        metadata={name: "a"},
        runtime_env={"env_vars": {name.replace("=", "-"): "a"}},
    )
