"""The command line as a shell sees it: how fast it starts, how it fails, what it completes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from ray_jobs.cli.app import COMMANDS, cli
from tests.acceptance.cli.conftest import PROJECT, Invoke, Spawn
from tests.acceptance.cli.fake_job_server import FakeJobServer

HEAVY = {"aiohttp", "asyncio", "msgspec", "rich", "yaml", "ray", "pathspec", "filelock", "ssl"}


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["run", "--help"]])
def test_help_imports_nothing_that_it_does_not_need(arguments: list[str]) -> None:
    code = (
        "import sys, ray_jobs.cli\n"
        "try: ray_jobs.cli.main()\n"
        "except SystemExit: print('\\nMODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split("MODULES")[1].split())
    assert not loaded & HEAVY


def test_help_lists_every_command_with_the_help_it_has() -> None:
    runner = CliRunner()
    listed = runner.invoke(cli, ["--help"]).output
    for name, lazy in COMMANDS.items():
        assert f"  {name} " in listed
        assert lazy.short_help in listed
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert len(result.output.splitlines()) > 5


def test_no_command_and_wrong_ones_are_usage_errors(invoke: Invoke) -> None:
    assert invoke().exit_code == 2
    assert invoke("nonsense").exit_code == 2
    assert invoke("status").exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(invoke: Invoke, shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_RAY_JOBS_COMPLETE" in result.stdout


def _completions(spawn: Spawn, words: str) -> list[str]:
    env = {
        "_RAY_JOBS_COMPLETE": "bash_complete",
        "COMP_WORDS": f"ray-jobs {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    stdout, _ = spawn(env=env).communicate(timeout=10)
    return [line.split(",")[1] for line in stdout.decode().splitlines()]


def test_completion_knows_commands_options_and_states(spawn: Spawn) -> None:
    assert _completions(spawn, "st") == ["status", "stop"]
    assert "--submission-id" in _completions(spawn, "submit --sub")
    assert [word.upper() for word in _completions(spawn, "list --status ST")] == ["STOPPED"]


@pytest.mark.parametrize(
    "words",
    [
        "submit --working-dir exam",
        "submit --runtime-env exam",
        "submit --verify exam",
        "submit -- python exam",
        "run exam",
    ],
)
def test_completion_leaves_paths_to_the_shell(spawn: Spawn, words: str) -> None:
    env = {
        "_RAY_JOBS_COMPLETE": "bash_complete",
        "COMP_WORDS": f"ray-jobs {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    stdout, _ = spawn(env=env).communicate(timeout=10)
    assert stdout == b"file,exam\n"


def test_completion_of_a_truth_value(spawn: Spawn) -> None:
    assert _completions(spawn, "list --verify fa") == ["false", "fa"]


def test_errors_have_a_hint_and_no_traceback(invoke: Invoke) -> None:
    result = invoke("list", "--address", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.match(r"Error: .*\nHint: ", result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("where", ["root", "command", "variable"])
def test_debug_shows_the_traceback(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    words = ["list", "--address", "http://127.0.0.1:1"]
    if where == "variable":
        monkeypatch.setenv("RAY_JOBS_DEBUG", "1")
    else:
        words.insert(0 if where == "root" else 1, "--debug")
    result = invoke(*words)
    assert "Traceback" in result.stderr
    assert "ServerUnreachable" in result.stderr


def test_what_nobody_expected_is_one_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("ray_jobs.cli.listing._fetch", fail)
    result = invoke("list")
    assert result.exit_code == 1
    assert "Error: unexpected KeyError: 'odd'" in result.stderr
    assert "Hint: Run it again with RAY_JOBS_DEBUG=1" in result.stderr


def test_a_reader_that_goes_away_is_no_error(server: FakeJobServer, spawn: Spawn) -> None:
    server.add_job("a", status="SUCCEEDED", log=b"line\n" * 100_000)
    process = spawn("logs", "a")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(10) == 141


def test_version(server: FakeJobServer, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke("version")
    assert result.exit_code == 0
    assert re.match(r"ray-jobs \S+", result.stdout)
    assert f"server ray-jobs 9.8.7, Ray 2.60.0 ({server.url})" in result.stdout
    offline = invoke("version", "--address", "http://127.0.0.1:1")
    assert (offline.exit_code, offline.stdout) == (1, result.stdout.splitlines()[0] + "\n")
    assert re.match(r"Error: .*127\.0\.0\.1:1.*\nHint: ", offline.stderr)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    assert len(invoke("version").stdout.splitlines()) == 1
    assert invoke("--version").stdout == result.stdout.splitlines()[0] + "\n"


def test_ray_jobs_without_ray_says_what_to_install(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for words in (["serve"], ["plugin", "enable"], ["plugin", "disable"], ["plugin", "status"]):
        result = invoke(*words)
        assert result.exit_code == 1, words
        assert 'pip install ".[server]"' in result.stderr
    assert invoke("serve", "--tls-cert", __file__).exit_code == 2


def test_serve_and_plugin_pass_on_what_they_are_told(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, object]] = []

    def record(**kwargs: object) -> str:
        calls.append(kwargs)
        return "done"

    def record_serve(host: str, port: int, options: dict[str, object], *, debug: bool) -> int:
        calls.append({"host": host, "port": port, "debug": debug, "options": options})
        return 0

    monkeypatch.setattr("ray_jobs.cli.watcher.watch", record_serve)
    monkeypatch.setattr("ray_jobs.cli.server.require_ray", lambda: None)
    options = ("--insecure", "--allowed-host", "jobs.example")
    assert invoke("serve", "--address", "h:6379", "--port", "0", *options).exit_code == 0
    monkeypatch.setattr("ray_jobs.plugin.disable", record)
    result = invoke("plugin", "disable", "--force", "--address", "http://h")
    assert (result.exit_code, result.stdout) == (0, "done\n")
    common = {"host": "127.0.0.1", "tls_cert": None, "tls_key": None, "redact_always": False}
    hosts = ("jobs.example",)
    options_told = {"address": "h:6379", "insecure": True, "allowed_hosts": hosts, **common}
    assert calls == [
        {"host": "127.0.0.1", "port": 0, "debug": False, "options": options_told},
        {"force": True, "address": "http://h"},
    ]


class Terminal:
    """A command whose stdin, stdout and stderr are a terminal."""

    def __init__(self, spawn: Spawn, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = spawn(*arguments, env=env, start_new_session=True, **streams)
        os.close(slave)
        self.seen = b""

    def read_until(self, found: Callable[[bytes], bool]) -> str:
        """Read what is drawn until it is as wanted."""
        deadline = time.monotonic() + 5
        while not found(self.seen):
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            assert select.select([self.master], [], [], left)[0], self.seen
            self.seen += os.read(self.master, 65536)
        return self.seen.decode()

    def read_all(self) -> str:
        """Read to the end."""
        try:
            while data := os.read(self.master, 65536):
                self.seen += data
        except OSError:
            # What Linux says instead of an end of file.
            os.close(self.master)
        self.process.wait(10)
        return self.seen.decode()


def test_a_spinner_says_what_a_pending_job_waits_for(server: FakeJobServer, spawn: Spawn) -> None:
    server.add_job("a", pending_reason="8 CPUs")
    server.on_submit = lambda job_id: server._change(job_id, pending_reason="8 CPUs")
    terminal = Terminal(spawn, "submit", "--submission-id", "b", "--", "x")
    terminal.read_until(lambda seen: b"Pending: 8 CPUs" in seen)
    server.change("b", pending_reason="its environment")
    terminal.read_until(lambda seen: b"Pending: its environment" in seen)
    server.change("b", status="RUNNING", pending_reason=None, log=b"line\n")
    server.end("b")
    drawn = terminal.read_all()
    assert terminal.process.returncode == 0
    # The spinner's line is wiped before the log begins.
    assert re.search(r"\x1b\[2Kline\r\n", drawn)


def test_list_is_a_table_on_a_terminal(server: FakeJobServer, spawn: Spawn) -> None:
    job_id = "raysubmit_" + "x" * 16
    server.add_job(job_id, status="FAILED", entrypoint="echo [red] " + "y" * 200)
    coloured = Terminal(spawn, "list", env={"COLUMNS": "90"})
    plain = Terminal(spawn, "list", env={"COLUMNS": "90", "NO_COLOR": "1"})
    for drawn in (coloured.read_all(), plain.read_all()):
        assert job_id in drawn
        assert "echo [red] yy" in drawn
        assert "…" in drawn
    assert b"\x1b[31mFAILED" in coloured.seen
    assert b"\x1b[3" not in plain.seen


@pytest.mark.parametrize("value", ["false", "never", "FALSE"])
def test_rays_logging_options_are_accepted(
    server: FakeJobServer, spawn: Spawn, invoke: Invoke, value: str
) -> None:
    server.add_job("a", status="SUCCEEDED")
    options = ("--log-style", "pretty", "--log-color", value, "-v", "--verbose")
    assert "\x1b[3" not in Terminal(spawn, "status", *options, "a").read_all()
    assert "\x1b[3" not in Terminal(spawn, "status", *options, "nope").read_all()
    for command in ("submit", "status", "stop", "logs", "list", "delete"):
        assert invoke(command, "-v", "--log-style", "odd", "a").exit_code == 2
        assert "--log-style" not in invoke(command, "--help").output
    assert invoke("list", "-v", "--log-color", "auto").exit_code == 0


def test_status_is_coloured_on_a_terminal_alone(
    server: FakeJobServer, spawn: Spawn, invoke: Invoke
) -> None:
    server.add_job("a", status="SUCCEEDED")
    assert "\x1b[32mSUCCEEDED" in Terminal(spawn, "status", "a").read_all()
    assert "\x1b" not in invoke("status", "a").stdout
