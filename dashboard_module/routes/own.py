"""Our own API: what the stock one has no word for. Errors are JSON."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from typing import BinaryIO

import aiohttp.web
import msgspec

from ray_jobs.errors import InvalidRequest
from ray_jobs.log_files import open_log
from ray_jobs.models import API_PREFIX, JobDetails, JobStatus, JobType

from ..bounded_logs import send_bounded_log
from ..errors import json_errors
from ..face import Face
from ..file_sender import send_file
from ..foreign_logs import need_log
from ..jobs import Job, Key, SubmissionJob
from ..log_reader import ByteFrames, LogFile
from ..open_files import need_room
from ..steps import Step
from ..tailing import serve_tail
from .answers import RAW_LOG_HEADERS, integer, json_answer, seconds, stream_answer
from .route import Route

DEFAULT_PAGE_JOBS = 100
MAX_PAGE_JOBS = 1000
#: With so many bytes a page ends, however few jobs that are.
MAX_PAGE_BYTES = 4 * 1024 * 1024
DEFAULT_WAIT_S = 30.0
MAX_WAIT_S = 60.0
MAX_INTEGER = 2**63 - 1


class ServerInfo(msgspec.Struct, kw_only=True):
    """The answer of `GET /server`."""

    version: str  #: of ray-jobs
    ray_version: str
    session_name: str
    max_package_bytes: int
    api: str = "v1"


@json_errors
async def get_server(face: Face, _request: aiohttp.web.Request) -> aiohttp.web.Response:
    info = ServerInfo(
        version=face.config.server_version,
        ray_version=face.config.ray_version,
        session_name=face.config.session_name,
        max_package_bytes=face.packages.max_bytes,
    )
    return json_answer(info)


@json_errors
async def list_page(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    cursor = request.query.get("cursor")
    jobs, end = await face.page(
        limit=integer(request, "limit", 1, MAX_PAGE_JOBS) or DEFAULT_PAGE_JOBS,
        before=None if cursor is None else decoded_cursor(cursor),
        statuses=_statuses(request),
        job_type=_job_type(request),
    )
    redact = face.config.redact(request)
    encoded: list[msgspec.Raw] = []
    size = 0
    step = Step()
    for job in jobs:
        encoded.append(msgspec.Raw(msgspec.json.encode(job.details(redact))))
        size += len(encoded[-1])
        if size >= MAX_PAGE_BYTES and job is not jobs[-1]:
            end = job.key
            break
        if step.is_over():
            await step.next()
    # As `JobPage`, of what is JSON already.
    return json_answer(
        {"jobs": encoded, "next_cursor": None if end is None else encoded_cursor(end)}
    )


@json_errors
async def get_details(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    job = await face.find(request.match_info["job_id"])
    return json_answer(_details(face, request, job))


@json_errors
async def wait_for_job(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    need_room(request, stays=True)
    job = await face.wait(
        request.match_info["job_id"],
        timeout_s=seconds(request, "timeout_s", DEFAULT_WAIT_S, MAX_WAIT_S),
        after_revision=integer(request, "after_revision", 0, MAX_INTEGER),
    )
    return json_answer(_details(face, request, job))


@json_errors
async def get_raw_log(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    job = await face.find_submission(request.match_info["job_id"], "get logs of")
    if await face.logs.is_elsewhere(job.record):
        return await _raw_log_from_its_node(face, request, job)
    need_log(face, job)
    path = face.log_path(job)
    if path and job.record.max_log_bytes is not None:
        log = LogFile(path, face.log_threads, is_bounded=True)
        with contextlib.closing(log):
            return await send_bounded_log(request, log, RAW_LOG_HEADERS)
    file = await asyncio.to_thread(_open_file, path) if path else None
    if file is None:
        return aiohttp.web.Response(body=b"", content_type="text/plain", charset="utf-8")
    with file:
        return await send_file(request, file, RAW_LOG_HEADERS)


def _open_file(path: str) -> BinaryIO | None:
    fd = open_log(path)
    return None if fd is None else open(fd, "rb")


async def _raw_log_from_its_node(
    face: Face, request: aiohttp.web.Request, job: SubmissionJob
) -> aiohttp.web.StreamResponse:
    async with contextlib.aclosing(face.logs.read(job.record, follow=False)) as chunks:
        first = await anext(chunks, b"")
        return await stream_answer(request, RAW_LOG_HEADERS, first, chunks)


@json_errors
async def tail_raw_log(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    offset = integer(request, "offset", 0, MAX_INTEGER) or 0
    job = await face.find_submission(request.match_info["job_id"], "get logs of")
    return await serve_tail(face, request, job, offset, ByteFrames())


def encoded_cursor(key: Key) -> str:
    """Return a place in the list, opaque to clients."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decoded_cursor(cursor: str) -> Key:
    """Return the place that a cursor names. Raises `InvalidRequest`."""
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        key: Key = msgspec.json.decode(data, type=tuple[int, str])
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise InvalidRequest("cursor isn't one that an earlier page gave.") from None
    return key


def _details(face: Face, request: aiohttp.web.Request, job: Job) -> JobDetails:
    return job.details(face.config.redact(request))


def _statuses(request: aiohttp.web.Request) -> set[JobStatus] | None:
    """Return the statuses asked for: several in one parameter, or in several."""
    texts = [
        text for value in request.query.getall("status", []) for text in value.split(",") if text
    ]
    try:
        return {JobStatus(text.upper()) for text in texts} or None
    except ValueError:
        known = ", ".join(JobStatus)
        raise InvalidRequest(f"status must be of {known}, got {texts[0][:40]!r}.") from None


def _job_type(request: aiohttp.web.Request) -> JobType | None:
    text = request.query.get("type")
    try:
        return None if not text else JobType(text.upper())
    except ValueError:
        raise InvalidRequest(f"type must be SUBMISSION or DRIVER, got {text!r:.40}.") from None


ROUTES = [
    Route("GET", f"{API_PREFIX}/server", "own_get_server", get_server),
    Route("GET", f"{API_PREFIX}/jobs", "own_list_jobs", list_page),
    Route("GET", f"{API_PREFIX}/jobs/{{job_id}}", "own_get_job", get_details),
    Route("GET", f"{API_PREFIX}/jobs/{{job_id}}/wait", "own_wait_for_job", wait_for_job),
    Route("GET", f"{API_PREFIX}/jobs/{{job_id}}/logs", "own_get_job_logs", get_raw_log),
    Route("GET", f"{API_PREFIX}/jobs/{{job_id}}/logs/tail", "own_tail_job_logs", tail_raw_log),
]
