"""A small real job server in a thread: the REST API, with jobs that do what a test says.

It serves Ray's own API and ours (`stock=True` leaves ours out), over real HTTP and WebSockets.
Test code runs in another thread, so every method below hands its work to the server's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import WSMsgType, web

from ray_jobs.models import (
    API_PREFIX,
    SERVER_VERSION_HEADER,
    DriverInfo,
    JobDetails,
    JobInfo,
    JobStatus,
    JobType,
)

Result = TypeVar("Result")
JSON = "application/json"


class FakeJob:
    """A job and its log."""

    def __init__(self, details: JobDetails) -> None:
        self.details = details
        self.log = b""


class FakeJobServer:
    """Context manager around the thread. `url` is where it listens."""

    def __init__(self, *, stock: bool = False, token: str | None = None) -> None:
        self.stock = stock
        self.token = token
        self.url = ""
        self.jobs: dict[str, FakeJob] = {}
        #: The bodies of the submissions, in their order.
        self.submissions: list[dict[str, Any]] = []
        #: (method, path) of each request, in their order.
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        #: Told each change of something that a test may wait for.
        self.events: dict[str, threading.Event] = {
            name: threading.Event()
            for name in ("submitted", "tailing", "waiting", "stopping", "held")
        }
        #: (method, start of the path) of requests that are never answered.
        self.held: set[tuple[str, str]] = set()
        #: Whether a log stream breaks off after the first bytes.
        self.breaks = False
        #: What a new job does; it is called in the server's loop.
        self.on_submit: Callable[[str], None] = lambda _job_id: None
        self.on_stop: Callable[[str], None] = lambda job_id: self._change(
            job_id, status=JobStatus.STOPPED, end_time=now_ms()
        )
        self._revisions = itertools.count(1)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._changed: asyncio.Event
        self._over: asyncio.Event

    def __enter__(self) -> FakeJobServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    # What tests call.

    def add_job(self, name: str, /, *, log: bytes = b"", **fields: Any) -> None:
        """Add a job as if it had been submitted."""
        self._in_loop(lambda: self._add(name, log, fields))

    def change(self, job_id: str, *, log: bytes = b"", **fields: Any) -> None:
        """Append to the log of a job, and change its fields."""
        self._in_loop(lambda: self._change(job_id, log=log, **fields))

    def end(self, job_id: str, status: str = "SUCCEEDED", code: int | None = None) -> None:
        """Let a job end."""
        self._in_loop(lambda: self._end(job_id, status, code))

    def will_end(
        self, status: str = "SUCCEEDED", code: int | None = None, log: bytes = b"", **fields: Any
    ) -> None:
        """Let every job submitted from now on run, print and end at once."""

        def act(job_id: str) -> None:
            self._change(job_id, log=log, status=JobStatus.RUNNING, **fields)
            self._end(job_id, status, code)

        self.on_submit = act

    def will_run(self, log: bytes = b"") -> None:
        """Let every job submitted from now on print something, and run on."""
        self.on_submit = lambda job_id: self._change(job_id, log=log, status=JobStatus.RUNNING)

    def wait_for(self, event: str) -> None:
        """Wait until something has happened: one of the names in `events`."""
        assert self.events[event].wait(10), f"no client was {event}"

    def _in_loop(self, function: Callable[[], Result]) -> Result:
        async def call() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    # What runs in the loop.

    def _add(self, job_id: str, log: bytes, fields: dict[str, Any]) -> None:
        values: dict[str, Any] = {
            "type": JobType.SUBMISSION,
            "submission_id": job_id,
            "status": JobStatus.PENDING,
            "entrypoint": "true",
            "start_time": now_ms(),
        } | fields
        if values["type"] == "DRIVER":
            values |= {"submission_id": None, "job_id": job_id}
        self.jobs[job_id] = FakeJob(
            msgspec.convert(values | {"revision": next(self._revisions)}, JobDetails)
        )
        self._change(job_id, log=log)

    def _change(self, job_id: str, *, log: bytes = b"", **fields: Any) -> None:
        job = self.jobs[job_id]
        job.log += log
        known = msgspec.to_builtins(job.details)
        job.details = msgspec.convert(
            known | {"revision": next(self._revisions)} | fields, JobDetails
        )
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self, job_id: str, status: str, code: int | None) -> None:
        message = {"FAILED": f"The entrypoint exited with {code}."}.get(status, "It ended.")
        self._change(
            job_id,
            status=JobStatus(status),
            driver_exit_code=code,
            message=message,
            end_time=now_ms(),
        )

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed, self._over = asyncio.Event(), asyncio.Event()
        app = web.Application(middlewares=[self._record], client_max_size=0)
        app.add_routes(self._stock_routes())
        if not self.stock:
            app.add_routes(self._own_routes())
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.headers.append(dict(request.headers))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized")
        if any(request.method == m and request.path.startswith(path) for m, path in self.held):
            self.events["held"].set()
            await self._over.wait()
        response: web.StreamResponse = await handler(request)
        return response

    def _stock_routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/version", self._version),
            web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/", self._list),
            web.get("/api/jobs/{id}", self._get),
            web.post("/api/jobs/{id}/stop", self._stop),
            web.delete("/api/jobs/{id}", self._delete),
            web.get("/api/jobs/{id}/logs", self._logs),
            web.get("/api/jobs/{id}/logs/tail", self._tail),
            web.get("/api/packages/{protocol}/{name}", self._no_package),
            web.put("/api/packages/{protocol}/{name}", self._package),
        ]

    def _own_routes(self) -> list[web.RouteDef]:
        return [
            web.get(f"{API_PREFIX}/jobs", self._page),
            web.get(f"{API_PREFIX}/jobs/{{id}}", self._get),
            web.get(f"{API_PREFIX}/jobs/{{id}}/wait", self._wait),
            web.get(f"{API_PREFIX}/jobs/{{id}}/logs", self._raw_log),
            web.get(f"{API_PREFIX}/jobs/{{id}}/logs/tail", self._tail),
        ]

    async def _version(self, _request: web.Request) -> web.Response:
        body = {"version": "4", "ray_version": "2.60.0", "ray_commit": "c", "session_name": "s"}
        headers = {} if self.stock else {SERVER_VERSION_HEADER: "9.8.7"}
        return web.json_response(body, headers=headers)

    async def _submit(self, request: web.Request) -> web.Response:
        body = json.loads(await request.text())
        self.submissions.append(body)
        job_id = body.get("submission_id") or f"raysubmit_{len(self.submissions):016d}"
        if job_id in self.jobs:
            text = f"Job with submission_id {job_id} already exists. "
            return web.Response(status=500, text=text + "Please use a different submission_id.")
        self._add(job_id, b"", {"entrypoint": body["entrypoint"]})
        self.on_submit(job_id)
        self.events["submitted"].set()
        return web.json_response({"job_id": job_id, "submission_id": job_id})

    def _visible(self, request: web.Request, details: JobDetails) -> JobInfo:
        if request.path.startswith(API_PREFIX):
            return details
        fields = JobInfo.__struct_fields__
        return JobInfo(**{name: getattr(details, name) for name in fields})

    async def _list(self, request: web.Request) -> web.Response:
        jobs = [self._visible(request, job.details) for job in self.jobs.values()]
        return web.Response(body=msgspec.json.encode(jobs), content_type=JSON)

    async def _page(self, request: web.Request) -> web.Response:
        wanted = {
            status.upper()
            for text in request.query.getall("status", [])
            for status in text.split(",")
        }
        jobs = [job.details for job in self.jobs.values()]
        jobs = [job for job in jobs if not wanted or job.status in wanted]
        jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
        jobs = jobs[: int(request.query.get("limit", 1000))]
        body = {"jobs": jobs, "next_cursor": None}
        return web.Response(body=msgspec.json.encode(body), content_type=JSON)

    def _missing(self, request: web.Request) -> web.Response | None:
        job_id = request.match_info["id"]
        if job_id in self.jobs:
            return None
        text = f"Job {job_id} does not exist"
        if request.path.startswith(API_PREFIX):
            error = {"error": {"code": "job_not_found", "message": text}}
            return web.json_response(error, status=404)
        return web.Response(status=404, text=text)

    async def _get(self, request: web.Request) -> web.Response:
        if missing := self._missing(request):
            return missing
        details = self.jobs[request.match_info["id"]].details
        body = msgspec.json.encode(self._visible(request, details))
        return web.Response(body=body, content_type=JSON)

    async def _stop(self, request: web.Request) -> web.Response:
        if missing := self._missing(request):
            return missing
        job_id = request.match_info["id"]
        live = not self.jobs[job_id].details.status.is_terminal()
        if live:
            self.on_stop(job_id)
            self.events["stopping"].set()
        return web.json_response({"stopped": live})

    async def _delete(self, request: web.Request) -> web.Response:
        if missing := self._missing(request):
            return missing
        job_id = request.match_info["id"]
        status = self.jobs[job_id].details.status
        if not status.is_terminal():
            text = f"Job {job_id} is in a non-terminal state {status}"
            return web.Response(status=500 if self.stock else 409, text=text)
        del self.jobs[job_id]
        return web.json_response({"deleted": True})

    async def _logs(self, request: web.Request) -> web.Response:
        if missing := self._missing(request):
            return missing
        log = self.jobs[request.match_info["id"]].log.decode(errors="replace")
        return web.json_response({"logs": log})

    async def _raw_log(self, request: web.Request) -> web.Response:
        """Answer with the end of a log: clients ask for `bytes=-N`."""
        if missing := self._missing(request):
            return missing
        log = self.jobs[request.match_info["id"]].log
        data = log[-int(request.headers["Range"].removeprefix("bytes=-")) :]
        where = f"{len(log) - len(data)}-{len(log) - 1}" if data else "*"
        return web.Response(
            status=206 if data else 416,
            body=data,
            headers={"Content-Range": f"bytes {where}/{len(log)}"},
        )

    async def _wait(self, request: web.Request) -> web.Response:
        if missing := self._missing(request):
            return missing
        job = self.jobs[request.match_info["id"]]
        after = request.query.get("after_revision")
        deadline = self._loop.time() + float(request.query.get("timeout_s", 30))
        self.events["waiting"].set()
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            while not job.details.status.is_terminal() and (
                after is None or job.details.revision <= int(after)
            ):
                await asyncio.wait_for(self._changed.wait(), deadline - self._loop.time())
        return web.Response(body=msgspec.json.encode(job.details), content_type=JSON)

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        if missing := self._missing(request):
            return missing
        job = self.jobs[request.match_info["id"]]
        own = request.path.startswith(API_PREFIX)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        # A close frame of the client is only seen by whoever receives.
        gone = asyncio.ensure_future(_until_closed(socket))
        sent = int(request.query.get("offset", 0))
        while not gone.done():
            changed = asyncio.ensure_future(self._changed.wait())
            if chunk := job.log[sent:]:
                sent += len(chunk)
                await (socket.send_bytes(chunk) if own else socket.send_str(chunk.decode()))
                self.events["tailing"].set()
            if self.breaks and request.transport is not None:
                request.transport.close()
                break
            if job.details.status.is_terminal():
                changed.cancel()
                await socket.close(code=1000)
                break
            await asyncio.wait({changed, gone}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        gone.cancel()
        return socket

    async def _no_package(self, _request: web.Request) -> web.Response:
        return web.Response(status=404, text="Package does not exist")

    async def _package(self, request: web.Request) -> web.Response:
        await request.content.read()
        return web.Response()


async def _until_closed(socket: web.WebSocketResponse) -> None:
    while (await socket.receive()).type not in (
        WSMsgType.CLOSE,
        WSMsgType.CLOSING,
        WSMsgType.CLOSED,
        WSMsgType.ERROR,
    ):
        continue


def now_ms() -> int:
    """Return the time as the job API has it."""
    return int(time.time() * 1000)


def driver(job_id: str = "01000000") -> DriverInfo:
    """Return a driver."""
    return DriverInfo(id=job_id, node_ip_address="127.0.0.1", pid="42")
