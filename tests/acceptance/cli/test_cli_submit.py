"""`ray-jobs submit`: what is sent, what is printed where, and the exit code."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ray_jobs.cli.options import Connection
from tests.acceptance.cli.conftest import Invoke, Spawn
from tests.acceptance.cli.fake_job_server import FakeJobServer


def test_it_prints_the_log_alone_on_stdout(server: FakeJobServer, invoke: Invoke) -> None:
    server.will_end(log="hellö\n".encode())
    result = invoke("submit", "--submission-id", "a", "--", "echo", "hellö")
    assert result.exit_code == 0, result.output
    assert result.stdout == "hellö\n"
    assert "Job a submitted" in result.stderr
    assert "ray-jobs logs -f a" in result.stderr
    assert "ray-jobs stop a" in result.stderr
    assert "Job a SUCCEEDED" in result.stderr


def test_no_wait_prints_the_id_alone_on_stdout(server: FakeJobServer, invoke: Invoke) -> None:
    result = invoke("submit", "--no-wait", "--", "sleep", "9")
    assert result.exit_code == 0
    (job_id,) = server.jobs
    assert result.stdout == f"{job_id}\n"
    assert f"ray-jobs logs -f {job_id}" in result.stderr
    assert not any("tail" in path for _, path in server.requests)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("FAILED", 3, 3),
        ("FAILED", 255, 255),
        ("FAILED", 256, 1),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", -15, 1),
        ("STOPPED", None, 1),
    ],
)
def test_it_exits_as_the_job_does(
    server: FakeJobServer, invoke: Invoke, status: str, code: int | None, expected: int
) -> None:
    server.will_end(status, code)
    assert invoke("submit", "--", "true").exit_code == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100MB", 10**8),
        ("2 gib", 2**31),
        ("64MiB", 2**26),
        ("2000000", 2 * 10**6),
        ("3m", 3 * 10**6),
    ],
)
def test_sizes_of_logs(server: FakeJobServer, invoke: Invoke, text: str, expected: int) -> None:
    result = invoke("submit", "--no-wait", "--max-log-bytes", text, "--", "true")
    assert result.exit_code == 0, result.output
    assert server.submissions[0]["max_log_bytes"] == expected


def test_a_failure_is_explained_on_stderr(server: FakeJobServer, invoke: Invoke) -> None:
    server.will_end("FAILED", 7, log=b"oh no\n")
    result = invoke("submit", "--submission-id", "a", "--", "false")
    assert result.stdout == "oh no\n"
    # Its message would only repeat the log that was just shown.
    assert result.stderr.endswith("Error: Job a failed with exit code 7.\n")


def test_the_entrypoint_is_quoted_for_a_shell(server: FakeJobServer, invoke: Invoke) -> None:
    invoke("submit", "--no-wait", "--", "python", "-c", "print('a b')\nx = \"$HOME\"")
    entrypoint = server.submissions[0]["entrypoint"]
    assert entrypoint == """python -c 'print('"'"'a b'"'"')\nx = "$HOME"'"""


def test_every_option_reaches_the_server(
    server: FakeJobServer, invoke: Invoke, tmp_path: Path
) -> None:
    env_file = tmp_path / "env.yaml"
    env_file.write_text("env_vars: {A: '1'}\nworking_dir: s3://b/old.zip\n")
    result = invoke(
        *("submit", "--no-wait", "--submission-id", "a", "--runtime-env", str(env_file)),
        *("--working-dir", "s3://bucket/code.zip", "--metadata-json", '{"k": "v"}'),
        *("--entrypoint-num-cpus", "0.5", "--entrypoint-num-gpus", "1"),
        *("--entrypoint-memory", "1000000", "--entrypoint-resources", '{"r": 2}'),
        *("--entrypoint-label-selector", '{"zone": "a"}', "--headers", '{"X-Team": "t"}'),
        *("--", "true"),
    )
    assert result.exit_code == 0, result.output
    sent = server.submissions[0]
    assert sent["runtime_env"]["env_vars"] == {"A": "1"}
    assert sent["runtime_env"]["working_dir"] == "s3://bucket/code.zip"
    assert "takes the place" in result.stderr
    assert (sent["submission_id"], sent["metadata"]["k"]) == ("a", "v")
    assert (sent["entrypoint_num_cpus"], sent["entrypoint_num_gpus"]) == (0.5, 1)
    assert (sent["entrypoint_memory"], sent["entrypoint_resources"]) == (1000000, {"r": 2})
    assert sent["entrypoint_label_selector"] == {"zone": "a"}
    assert all(headers["X-Team"] == "t" for headers in server.headers)


def test_headers_come_from_the_environment(
    server: FakeJobServer, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Team": "e"}')
    invoke("submit", "--no-wait", "--", "true")
    assert server.headers[-1]["X-Team"] == "e"
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Team": "a\\nb"}')
    result = invoke("submit", "--no-wait", "--", "true")
    assert result.exit_code == 2
    assert "X-Team has a line break" in result.stderr
    monkeypatch.setenv("RAY_JOB_HEADERS", "no JSON")
    result = invoke("submit", "--no-wait", "--", "true")
    assert result.exit_code == 2
    assert "not valid JSON" in result.stderr


def test_job_id_is_a_deprecated_alias(server: FakeJobServer, invoke: Invoke) -> None:
    result = invoke("submit", "--no-wait", "--job-id", "old", "--", "true")
    assert server.submissions[0]["submission_id"] == "old"
    assert "deprecated" in result.stderr


def test_a_working_dir_is_packed_and_sent(
    server: FakeJobServer, invoke: Invoke, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("print(1)")
    result = invoke("submit", "--no-wait", "--working-dir", str(tmp_path), "--", "true")
    assert result.exit_code == 0, result.output
    assert server.submissions[0]["runtime_env"]["working_dir"].startswith("gcs://")
    assert any(method == "PUT" for method, _ in server.requests)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runtime-env-json", "{"], "not valid JSON"),
        (["--runtime-env-json", "[]"], "must be a JSON object"),
        (["--metadata-json", "1"], "must be a JSON object"),
        (["--entrypoint-resources", "nope"], "not valid JSON"),
        (["--runtime-env", "/does/not/exist"], "No such file"),
        (["--runtime-env", "{list}"], "must hold a mapping"),
        (["--runtime-env", "{broken}"], "is not YAML"),
        (["--runtime-env", "{list}", "--runtime-env-json", "{{}}"], "not both"),
        (["--entrypoint-num-cpus", "many"], "not a valid float"),
        (["--entrypoint-num-cpus", "-1"], "x>=0"),
        (["--entrypoint-num-cpus", "nan"], "nan is not a number"),
        (["--entrypoint-num-gpus", "inf"], "inf is not a number"),
        (["--entrypoint-memory", "-1"], "x>=0"),
        (["--max-log-bytes", "much"], "is not a size"),
        (["--max-log-bytes", "-5MB"], "is not a size"),
        (["--entrypoint-resources", '{"a": "b"}'], "must hold numbers"),
        (["--entrypoint-resources", '{"a": true}'], "must hold numbers"),
        (["--entrypoint-label-selector", '{"a": 1}'], "must hold strings"),
        (["--metadata-json", '{"a": 1}'], "must hold strings"),
        (["--headers", '{"a b": "c"}'], "'a b' is not the name of a header"),
        (["--headers", '{"a": null}'], "must be a string, not NoneType"),
    ],
)
def test_wrong_usage_exits_with_2_before_anything_is_sent(
    server: FakeJobServer, invoke: Invoke, tmp_path: Path, arguments: list[str], words: str
) -> None:
    files = {"list": tmp_path / "list", "broken": tmp_path / "broken"}
    files["list"].write_text("[1]")
    files["broken"].write_text("a: b: c")
    paths = {name: str(path) for name, path in files.items()}
    filled = [word.format(**paths) if word[1:-1] in paths else word for word in arguments]
    filled = ["{}" if word == "{{}}" else word for word in filled]
    result = invoke("submit", *filled, "--", "true")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert not server.requests


def test_options_of_the_entrypoint_need_a_separator(invoke: Invoke) -> None:
    result = invoke("submit", "python", "script.py", "--epochs", "3")
    assert result.exit_code == 2
    assert "ray-jobs submit -- python script.py --epochs" in result.stderr
    assert invoke("submit").exit_code == 2
    empty = invoke("submit", "--", "")
    assert empty.exit_code == 2
    assert "the command is empty" in empty.stderr


def test_hints_name_the_address_that_was_given(server: FakeJobServer, invoke: Invoke) -> None:
    result = invoke("submit", "--no-wait", "--address", server.url, "--", "true")
    assert f"--address {server.url}" in result.stderr


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_hints_hide_the_password(server: FakeJobServer, invoke: Invoke, scheme: str) -> None:
    host = server.url.removeprefix("http://")
    address = f"{scheme}user:hunter2@{host}"
    result = invoke("submit", "--no-wait", "--address", address, "--", "true")
    assert result.exit_code == 0, result.output
    assert "hunter2" not in result.output
    assert f"--address '{scheme}***@{host}'" in result.stderr
    assert "the password in the address" in result.stderr


def test_hints_say_what_they_leave_out(server: FakeJobServer, invoke: Invoke) -> None:
    options = ("--verify", "false", "--headers", '{"X-Secret": "hunter2"}')
    result = invoke("submit", "--no-wait", "--submission-id", "a", *options, "--", "true")
    assert "ray-jobs stop a --verify false\n" in result.stderr
    assert "Left out here, for it may be secret: the --headers." in result.stderr
    assert "hunter2" not in result.output


def test_hints_name_the_certificates(server: FakeJobServer, invoke: Invoke, tmp_path: Path) -> None:
    bundle = tmp_path / "my ca.pem"
    bundle.write_text("")
    address = server.url.replace("http://", "http://user:hunter2@")
    connection = Connection(address, str(bundle), None)
    assert connection.command("list").endswith(f"--verify '{bundle}'")
    assert "the password in the address" in (connection.left_out() or "")


def test_a_log_that_breaks_off_is_not_the_end_of_the_job(
    stock_server: FakeJobServer, invoke: Invoke
) -> None:
    stock_server.will_end("FAILED", 5, log=b"first\n")
    stock_server.breaks = True
    words = ("--address", stock_server.url)
    result = invoke("submit", *words, "--submission-id", "a", "--", "false")
    assert (result.exit_code, result.stdout) == (5, "first\n")
    assert "The log stream of a broke off" in result.stderr
    assert f"ray-jobs logs -f a --address {stock_server.url}" in result.stderr
    assert "get_job_logs" not in result.stderr
    assert "Error: Job a failed with exit code 5: The entrypoint exited with 5." in result.stderr
    followed = invoke("logs", "-f", *words, "a")
    assert (followed.exit_code, followed.stdout) == (1, "first\n")
    assert "Hint: The job goes on: ray-jobs logs -f a" in followed.stderr
    assert "get_job_logs" not in followed.stderr


def test_words_that_are_not_utf8_are_refused_in_words(
    server: FakeJobServer, invoke: Invoke
) -> None:
    for words in (
        ("--", "echo", "\udcff"),
        ("--submission-id", "a\udcff", "--", "true"),
        ("--metadata-json", '{"a": "\udcff"}', "--", "true"),
    ):
        result = invoke("submit", *words)
        assert result.exit_code in (1, 2)
        assert "UTF-8" in result.stderr
        assert "unexpected" not in result.stderr
    assert server.submissions == []


def test_bytes_of_a_shell_that_are_not_utf8(server: FakeJobServer, spawn: Spawn) -> None:
    process = spawn("submit", "--", "echo", os.fsdecode(b"\xff"))
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 1
    assert stderr.startswith(b"Error: entrypoint holds bytes that aren't UTF-8")
    assert server.submissions == []


def test_the_submit_hook_is_called_as_by_ray(
    server: FakeJobServer, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_hook.py").write_text("calls = []\ndef hook(**kwargs): calls.append(kwargs)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RAY_JOB_SUBMIT_HOOK", "my_hook.hook")
    invoke(
        *("submit", "--no-wait", "--submission-id", "a", "--runtime-env-json", '{"pip": []}'),
        *("--metadata-json", '{"k": "v"}', "--", "echo", "a b"),
    )
    (call,) = sys.modules["my_hook"].calls
    assert call == {
        "address": None,
        "job_id": "a",
        "submission_id": "a",
        "runtime_env": None,
        "runtime_env_json": json.dumps({"pip": []}),
        "metadata_json": {"k": "v"},
        "working_dir": None,
        "entrypoint": ("echo", "a b"),
        "entrypoint_num_cpus": None,
        "entrypoint_num_gpus": None,
        "entrypoint_memory": None,
        "entrypoint_resources": None,
        "entrypoint_label_selector": None,
        "no_wait": True,
    }
    monkeypatch.setenv("RAY_JOB_SUBMIT_HOOK", "my_hook.missing")
    result = invoke("submit", "--no-wait", "--", "true")
    assert result.exit_code == 1
    assert "RAY_JOB_SUBMIT_HOOK" in result.stderr
    assert len(server.submissions) == 1


def test_a_duplicate_id_is_an_error(server: FakeJobServer, invoke: Invoke) -> None:
    server.add_job("a")
    result = invoke("submit", "--submission-id", "a", "--", "true")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "already exists" in result.stderr
