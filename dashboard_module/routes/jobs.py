"""The compatible face: version, submit, list, get, stop, delete, as Ray 2.60 serves them."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import aiohttp.web

from ray_jobs.errors import InvalidRequest, TooLarge
from ray_jobs.models import (
    MAX_PACKAGE_BYTES_HEADER,
    SERVER_VERSION_HEADER,
    STOCK_API_VERSION,
    DeleteResponse,
    StopResponse,
    SubmitResponse,
    VersionInfo,
)
from ray_jobs.validation import parse_submit_request

from ..errors import plain_errors
from ..face import Face
from .answers import JSON_HEADERS, json_answer, json_bytes, read_body, stream_answer
from .route import Route

#: A list of up to so many bytes is answered whole, a longer one in pieces.
WHOLE_LIST_BYTES = 256 * 1024


@plain_errors
async def get_version(face: Face, _request: aiohttp.web.Request) -> aiohttp.web.Response:
    config = face.config
    info = VersionInfo(
        version=STOCK_API_VERSION,
        ray_version=config.ray_version,
        ray_commit=config.ray_commit,
        session_name=config.session_name,
    )
    return json_answer(
        info,
        {
            SERVER_VERSION_HEADER: config.server_version,
            MAX_PACKAGE_BYTES_HEADER: str(face.packages.max_bytes),
        },
    )


@plain_errors
async def submit_job(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    body = await read_body(request, face.config.max_submission_bytes, TooLarge)
    submission_id = await face.submit(parse_submit_request(body))
    return json_answer(SubmitResponse(job_id=submission_id, submission_id=submission_id))


@plain_errors
async def list_jobs(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    form = request.query.get("format", "array")
    if form not in ("array", "map"):
        raise InvalidRequest(f"format must be array or map, got {form[:40]!r}.")
    pieces = face.list_json(redact=face.config.redact(request), keyed=form == "map")
    begin = b""
    async for piece in pieces:
        begin += piece
        if len(begin) > WHOLE_LIST_BYTES:
            return await stream_answer(request, JSON_HEADERS, begin, pieces)
    return json_bytes(begin)


@plain_errors
async def get_job(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    job = await face.find(request.match_info["job_id"])
    return json_bytes(job.info_json(face.config.redact(request)))


@plain_errors
async def stop_job(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    return json_answer(StopResponse(await face.stop(request.match_info["job_id"])))


@plain_errors
async def delete_job(face: Face, request: aiohttp.web.Request) -> aiohttp.web.Response:
    return json_answer(DeleteResponse(await face.delete(request.match_info["job_id"])))


ROUTES = [
    Route("GET", "/api/version", "get_version", get_version),
    Route("POST", "/api/jobs/", "submit_job", submit_job),
    Route("GET", "/api/jobs/", "list_jobs", list_jobs),
    Route("GET", "/api/jobs/{job_id}", "get_job", get_job),
    Route("POST", "/api/jobs/{job_id}/stop", "stop_job", stop_job),
    Route("DELETE", "/api/jobs/{job_id}", "delete_job", delete_job),
]
