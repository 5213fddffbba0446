"""A job server to talk to: a real aiohttp server in a thread, on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import web

from ray_jobs import models

T = TypeVar("T")
#: Turns of an event loop after which a connection that it accepted has its handler.
ACCEPT_TURNS = 5

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def job(submission_id: str = "job1", **changes: Any) -> dict[str, Any]:
    """Return a job as servers give it."""
    return {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": submission_id,
        "driver_info": None,
        "status": "RUNNING",
        "entrypoint": "true",
        "message": None,
        "start_time": 1000,
        "end_time": None,
        "metadata": {},
        "runtime_env": {},
        "revision": 1,
        **changes,
    }


class JobServer:
    """Serves enough of the job API, as ours or as Ray's own (`is_ray_jobs`)."""

    def __init__(self) -> None:
        self.is_ray_jobs = True
        self.max_package_bytes = 1 << 20
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, bytes] = {}
        self.packages: dict[str, bytes] = {}
        #: (method, raw path with query) of each request, in order.
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.submissions: list[dict[str, Any]] = []
        #: Takes the place of what is answered to (method, path).
        self.overrides: dict[tuple[str, str], Handler] = {}
        self.port = 0
        self.scheme = "http"
        self._listening: socket.socket
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5)

    def start(self, context: ssl.SSLContext | None = None) -> None:
        """Listen; again on the same port after a `stop`."""

        async def start() -> None:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", self._dispatch)
            self._runner = web.AppRunner(app, shutdown_timeout=0.01)
            await self._runner.setup()
            self._listening = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listening.getsockname()[1]
            await web.SockSite(self._runner, self._listening, ssl_context=context).start()

        self.scheme = "https" if context else "http"
        self.run(start())

    def stop(self) -> None:
        async def stop(runner: web.AppRunner) -> None:
            # Before Python 3.12 a connection that was accepted just before its server is closed
            # stays open, and unanswered: so first nothing more is accepted.
            asyncio.get_running_loop().remove_reader(self._listening)
            for _ in range(ACCEPT_TURNS):
                await asyncio.sleep(0)
            await runner.cleanup()

        if self._runner is not None:
            self.run(stop(self._runner))
            self._runner = None

    def close(self) -> None:
        """End it, with the handlers that wait still."""

        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.stop()
        self.run(cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def paths(self, method: str) -> list[str]:
        return [path for used, path in self.requests if used == method]

    def answer(self, method: str, path: str, status: int, text: str = "", **headers: str) -> None:
        """Have every such request answered so."""

        async def handler(_request: web.Request) -> web.Response:
            return web.Response(
                status=status,
                text=text,
                headers={name.replace("_", "-"): value for name, value in headers.items()},
            )

        self.overrides[method, path] = handler

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path))
        self.headers.append(dict(request.headers))
        override = self.overrides.get((request.method, request.path))
        if override is not None:
            return await override(request)
        parts = request.path.strip("/").split("/")
        if request.path == "/api/version":
            return self._version()
        if parts[:2] == ["api", "packages"]:
            return await self._package(request, f"{parts[2]}://{parts[3]}")
        if request.path == "/api/jobs/":
            return await self._jobs(request)
        if parts[:2] == ["api", "jobs"]:
            return await self._job(request, parts[2], "/".join(parts[3:]))
        if self.is_ray_jobs and request.path == f"{models.API_PREFIX}/jobs":
            return self._page(request)
        if self.is_ray_jobs and request.path.startswith(f"{models.API_PREFIX}/jobs/"):
            return web.json_response(self.jobs[parts[4]])
        return web.Response(status=404, text="404: Not Found")

    def _version(self) -> web.Response:
        headers = {
            models.SERVER_VERSION_HEADER: "0.1.0",
            models.MAX_PACKAGE_BYTES_HEADER: str(self.max_package_bytes),
        }
        version = {"version": "4", "ray_version": "2.60.0", "session_name": "session_1"}
        return web.json_response(version, headers=headers if self.is_ray_jobs else {})

    async def _package(self, request: web.Request, uri: str) -> web.Response:
        if request.method == "PUT":
            self.packages[uri] = await request.read()
        elif uri not in self.packages:
            return web.Response(status=404, text=f"Package {uri} does not exist")
        return web.Response()

    async def _jobs(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(list(self.jobs.values()))
        submission = await request.json()
        self.submissions.append(submission)
        submission_id = submission["submission_id"]
        if submission_id in self.jobs:
            text = f"Job with submission_id {submission_id} already exists. "
            return web.Response(status=500, text=text + "Please use a different submission_id.")
        self.jobs[submission_id] = job(submission_id, entrypoint=submission["entrypoint"])
        return web.json_response({"job_id": submission_id, "submission_id": submission_id})

    async def _job(self, request: web.Request, job_id: str, rest: str) -> web.Response:
        found = self.jobs.get(job_id)
        if found is None:
            return web.Response(status=404, text=f"Job {job_id} does not exist")
        if request.method == "DELETE":
            del self.jobs[job_id]
            return web.json_response({"deleted": True})
        if rest == "stop":
            return web.json_response({"stopped": found["status"] == "RUNNING"})
        if rest == "logs":
            text = self.logs.get(job_id, b"").decode("utf-8", "replace")
            return web.json_response({"logs": text})
        return web.json_response(found)

    def _page(self, request: web.Request) -> web.Response:
        wanted = request.query.getall("status", [])
        jobs = [one for one in self.jobs.values() if not wanted or one["status"] in wanted]
        start = int(request.query.get("cursor", "0"))
        end = start + int(request.query["limit"])
        cursor = str(end) if end < len(jobs) else None
        return web.json_response({"jobs": jobs[start:end], "next_cursor": cursor})
