"""What the manager makes of submissions that are nearly right: a record, or a refusal of ours.

Ray's own classes judge runtime environments and label selectors here, as on a cluster.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from ray_jobs import _ray
from ray_jobs.errors import InvalidRequest, InvalidRuntimeEnv
from ray_jobs.manager.actor import new_record
from ray_jobs.models import JobStatus, SubmitRequest
from ray_jobs.records import (
    ErrorBody,
    ManagerReply,
    decode_record,
    decode_reply,
    encode_message,
    encode_record,
    mirror_json,
)
from ray_jobs.runtime_env_fields import KNOWN_FIELDS
from ray_jobs.scrubbing import scrubbed
from ray_jobs.validation import (
    JOB_CONFIG_ENV_VAR,
    MAX_ARGUMENT_BYTES,
    job_config_json,
    parse_submit_request,
    validate,
)

EXAMPLES = 600
LONG_EXAMPLES = 10_000
ENV_VALUE, URL_PASSWORD = "s3cretvalue", "hunter22word"
#: A refusal repeats no more of what was sent.
MAX_MESSAGE_CHARACTERS = 4000

Bodies = st.SearchStrategy[dict[str, Any]]

URIS = st.sampled_from(
    [
        *("gcs://a.zip", "gcs://a.whl", "gcs://a", "gcs://", "s3://b/a.zip", "https://h/a.tar.gz"),
        *(f"https://alice:{URL_PASSWORD}@h/a.zip", f"https://alice:{URL_PASSWORD}@h/a"),
        # Longer than what is repeated of it.
        f"https://alice:{URL_PASSWORD}{'p' * 600}@h/a",
        *("file:///a.zip", "http://[", "http://[::1/a.zip", "://", "foo://a.zip", "gcs://%00.zip"),
        f"https://alice:{URL_PASSWORD}@h\u2100/a.zip",
        *("https://h:x/a.zip", "https://h/a.zip#b", f"https://h/{'a' * 5000}.zip"),
    ]
)
#: None of them is a file. One would be read.
PATHS = st.sampled_from(
    [
        "",
        ".",
        "..",
        "/",
        "/root",
        "~",
        "/" + "x" * 5000,
        "x" * 300,
        "/no/a.yml",
        "x" * 300 + ".yaml",
    ]
)
WORDS = st.sampled_from(
    [
        *(" ", "a", "base", "-1", "1", "true", "null", "__class__", "{}", "a\0b", "a\nb", "\x7f"),
        *("in(a)", "!in(a, b)", "in(", "a=b", "é", "世界", "\ud800", "\ud800x", "x" * 2000),
    ]
)
TEXTS = st.one_of(WORDS, URIS, PATHS, st.text(st.characters(), max_size=8))
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(10**40)]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
TEXT_LISTS = st.lists(TEXTS, max_size=3)
TEXT_DICTS = st.dictionaries(TEXTS, TEXTS, max_size=3)


def seldom_odd(right: st.SearchStrategy[Any], others: int = 7) -> st.SearchStrategy[Any]:
    """Return what is right, and once in a while anything else."""
    return st.integers(0, others).flatmap(lambda chance: ODD if chance == 0 else right)


def fields(right: dict[str, st.SearchStrategy[Any]], max_fields: int) -> Bodies:
    """Return objects of some known fields, and of one unknown once in a while."""
    name = st.sampled_from(sorted(right))
    one = name.flatmap(lambda each: st.tuples(st.just(each), seldom_odd(right[each])))
    unknown = st.tuples(TEXTS | name.map(str.upper), ODD)
    some = st.lists(seldom_many(one, unknown), max_size=max_fields)
    return some.map(dict)


def seldom_many(
    usual: st.SearchStrategy[Any], seldom: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda chance: seldom if chance == 0 else usual)


PACKAGES = st.lists(
    st.sampled_from(["requests", "a==1", "ray[serve]", "-r b.txt", "a"]), max_size=3
)
INSTALL_OPTIONS = st.lists(st.sampled_from(["-v", "--no-cache"]) | TEXTS, max_size=2)
PIP = {
    "packages": PACKAGES | PATHS,
    "pip_check": st.booleans(),
    "pip_version": TEXTS,
    "pip_install_options": INSTALL_OPTIONS,
}
UV = {
    "packages": PACKAGES,
    "uv_check": st.booleans(),
    "uv_version": TEXTS,
    "uv_pip_install_options": INSTALL_OPTIONS,
}
CONTAINER = {"image": TEXTS, "worker_path": TEXTS, "run_options": TEXT_LISTS}
CONFIG = {
    "setup_timeout_seconds": st.sampled_from([1, 600, -1, 2**31 - 1]),
    "eager_install": st.booleans(),
    "log_files": TEXT_LISTS,
}
RUNTIME_ENV: dict[str, st.SearchStrategy[Any]] = {
    "env_vars": st.dictionaries(st.sampled_from(["A", "B", "C"]), TEXTS, max_size=3),
    "working_dir": URIS,
    "py_modules": st.lists(URIS, max_size=2),
    "excludes": TEXT_LISTS,
    "pip": PACKAGES | PATHS | fields(PIP, 3),
    "uv": PACKAGES | PATHS | fields(UV, 3),
    "conda": TEXTS | ODD,
    "config": fields(CONFIG, 2),
    "container": fields(CONTAINER, 3),
    "image_uri": TEXTS,
    "py_executable": TEXTS,
    "java_jars": TEXT_LISTS,
    "worker_process_setup_hook": TEXTS,
    **dict.fromkeys(("nsight", "_nsight", "rocprof_sys", "_rocprof_sys"), TEXTS | TEXT_DICTS),
    **dict.fromkeys(("_ray_release", "_ray_commit"), TEXTS),
    "_inject_current_ray": st.booleans(),
}
QUANTITIES = st.one_of(st.integers(0, 2**40), st.floats(0, 1e6), st.just((2**63 - 1) // 10_000))
LABELS = st.sampled_from(["ray.io/node-id", "a", "a.b/c", "market"])
BODY: dict[str, st.SearchStrategy[Any]] = {
    "submission_id": st.sampled_from(["a", "a.b", "世界", "x" * 200, "x" * 201, "..", "a/b"]),
    "job_id": st.sampled_from(["a", "?#%2F"]),
    "metadata": TEXT_DICTS,
    "entrypoint_num_cpus": QUANTITIES,
    "entrypoint_num_gpus": QUANTITIES,
    "entrypoint_memory": st.integers(0, 2**40),
    "entrypoint_resources": st.dictionaries(st.sampled_from(["TPU", "a"]), QUANTITIES, max_size=2),
    "entrypoint_label_selector": st.dictionaries(
        LABELS, st.sampled_from(["", "a", "!a", "in(a,b)", "!in(a)"]), max_size=2
    ),
    "max_log_bytes": st.integers(2**20, 2**40),
}


def body(runtime_env: Any, others: dict[str, Any]) -> dict[str, Any]:
    """Return a body. Its environment has a secret that nothing else holds."""
    if isinstance(runtime_env, dict) and isinstance(runtime_env.get("env_vars", {}), dict):
        env_vars = {**runtime_env.get("env_vars", {}), "KEY": ENV_VALUE}
        runtime_env = {**runtime_env, "env_vars": env_vars}
    return {"entrypoint": "true", "runtime_env": runtime_env, **others}


bodies: Bodies = st.builds(body, seldom_odd(fields(RUNTIME_ENV, 3)), fields(BODY, 2))
decoder = msgspec.json.Decoder(SubmitRequest)


def as_the_face_sends_it(body: dict[str, Any]) -> SubmitRequest | None:
    """Return what comes to the manager, or None for what the face refuses. In its own words."""
    try:
        parsed = parse_submit_request(json.dumps(body).encode())
    except InvalidRequest as error:
        check_refusal(error)
        return None
    return decoder.decode(msgspec.json.encode(parsed))


def as_nobody_sends_it(body: dict[str, Any]) -> SubmitRequest | None:
    """Return a request that no face has judged."""
    try:
        return decoder.decode(json.dumps(body).encode())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def check_refusal(error: InvalidRequest) -> None:
    """It is short, tells no secret, and comes through to the face."""
    assert len(error.message) < MAX_MESSAGE_CHARACTERS
    assert ENV_VALUE not in error.message
    assert URL_PASSWORD not in scrubbed(error.message)  # by the face
    reply = ManagerReply(error=ErrorBody(error.code, error.message))
    assert decode_reply(encode_message(reply)) == reply


def check_record(request: SubmitRequest) -> None:
    """It can be stored, read again, mirrored for Ray, and given to the job's driver."""
    submission_id = request.submission_id or request.job_id or "generated"
    record = new_record(request, submission_id, "key")
    assert decode_record(encode_record(record)) == record
    assert (record.submission_id, record.status) == (submission_id, JobStatus.PENDING)
    assert record.metadata == (request.metadata or {})
    mirrored = json.loads(mirror_json(record, _ray.mirror_fields()))
    assert mirrored["entrypoint"] == request.entrypoint
    config = job_config_json(record.runtime_env, record.metadata, submission_id)
    assert len(f"{JOB_CONFIG_ENV_VAR}={config}".encode()) <= MAX_ARGUMENT_BYTES
    # Ray checks it again where it builds the environment.
    assert _ray.normalised_runtime_env(record.runtime_env or {}) == record.runtime_env


def outcomes(
    comes: Callable[[dict[str, Any]], SubmitRequest | None], max_examples: int
) -> collections.Counter[str]:
    """Submit so many bodies, and return how often which came of them."""
    found: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=max_examples == EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies)
    def submit(body: dict[str, Any]) -> None:
        note(json.dumps(body))
        request = comes(body)
        if request is None:
            found["not decoded"] += 1
            return
        try:
            check_record(request)
        except InvalidRequest as error:
            check_refusal(error)
            found["refused"] += 1
        else:
            found["recorded"] += 1
            found.update(list(request.runtime_env or {}))

    submit()
    return found


@pytest.mark.parametrize(
    ("runtime_env", "named"),
    [
        # In Ray's words, which don't say which field it is.
        ({"working_dir": "foo://a.zip"}, r"\(working_dir\): foo://a.zip"),
        ({"py_modules": ["foo://a.zip"]}, r"\(py_modules\): foo://a.zip"),
        ({"conda": "/" + "x" * 5000}, r"\(conda\): .*too long"),
        ({"pip": "/root"}, r"\(pip\): /root"),
        ({"env_vars": {"A": "foo:"}, "working_dir": "foo://a.zip"}, r"\(env_vars, working_dir\): "),
        ({"working_dir": "http://["}, r"'working_dir'\] is no URI"),
        ({"working_dir": f"https://alice:{URL_PASSWORD}@h\u2100/a.zip"}, "'working_dir'.*no URI"),
        ({"py_modules": ["gcs://a.zip", "http://["]}, r"'py_modules'\] is no URI"),
    ],
)
def test_a_refusal_names_the_field(runtime_env: dict[str, Any], named: str) -> None:
    request = SubmitRequest(entrypoint="true", runtime_env=runtime_env)
    with pytest.raises(InvalidRuntimeEnv, match=named) as caught:
        new_record(request, "a", "key")
    check_refusal(caught.value)


def test_label_selectors_are_not_repeated_in_full() -> None:
    request = SubmitRequest(entrypoint="true", entrypoint_label_selector={"a": "(" * 100_000})
    with pytest.raises(InvalidRequest, match="entrypoint_label_selector") as caught:
        new_record(request, "a", "key")
    check_refusal(caught.value)


def test_what_ray_adds_must_fit_too() -> None:
    """A driver is told of its environment in one variable, which the kernel would not take."""

    def request(more: int) -> SubmitRequest:
        runtime_env = {"uv": ["x" * (MAX_ARGUMENT_BYTES - 400 + more)]}
        return SubmitRequest(entrypoint="true", runtime_env=runtime_env)

    check_record(request(0))
    validate(request(150))
    with pytest.raises(InvalidRequest, match="runtime_env and metadata together"):
        new_record(request(150), "x" * 200, "key")


WAYS = pytest.mark.parametrize("comes", [as_the_face_sends_it, as_nobody_sends_it])


@WAYS
def test_a_record_or_a_refusal(comes: Callable[[dict[str, Any]], SubmitRequest | None]) -> None:
    found = outcomes(comes, EXAMPLES)
    # Neither is a rarity, and every field is in a record here and there.
    assert min(found["refused"], found["recorded"]) > EXAMPLES / 20, found
    assert set(found) >= KNOWN_FIELDS, KNOWN_FIELDS - set(found)


@pytest.mark.long
@WAYS
def test_a_record_or_a_refusal_for_long(
    comes: Callable[[dict[str, Any]], SubmitRequest | None],
) -> None:
    found = outcomes(comes, LONG_EXAMPLES)
    assert min(found["refused"], found["recorded"]) > LONG_EXAMPLES / 20, found
