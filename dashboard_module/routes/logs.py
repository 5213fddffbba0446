"""The compatible face: the log of a job, whole and followed, as Ray 2.60 serves it."""
# ruff: noqa: TID252 - absolute names would differ between the folder and the installed package

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiohttp.web

from ray_jobs.models import CUT_OFF_NOTICE

from ..errors import plain_errors
from ..face import Face
from ..foreign_logs import json_pieces, need_log
from ..log_reader import LogFile, TextFrames, escaped
from ..tailing import serve_tail
from .answers import JSON_HEADERS, json_bytes, stream_answer
from .route import Route

_BEGIN, _END = b'{"logs":"', b'"}'


@plain_errors
async def get_logs(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    job = await face.find_submission(request.match_info["job_id"], "get logs of")
    if await face.logs.is_elsewhere(job.record):
        async with contextlib.aclosing(face.logs.read(job.record, follow=False)) as chunks:
            return await _answer(request, json_pieces(chunks), _END)
    need_log(face, job)
    is_bounded = job.record.max_log_bytes is not None
    log = LogFile(face.log_path(job), face.log_threads, is_bounded=is_bounded)
    with contextlib.closing(log):
        end = escaped(CUT_OFF_NOTICE) + _END if job.record.log_may_be_cut_off else _END
        return await _answer(request, log.json_pieces(), end)


async def _answer(
    request: aiohttp.web.Request, pieces: AsyncIterator[bytes], end: bytes
) -> aiohttp.web.StreamResponse:
    first = await anext(pieces)
    try:
        second = await anext(pieces)
    except StopAsyncIteration:
        return json_bytes(_BEGIN + first + end)
    return await stream_answer(request, JSON_HEADERS, _BEGIN + first + second, pieces, end)


@plain_errors
async def tail_logs(face: Face, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    job = await face.find_submission(request.match_info["job_id"], "get logs of")
    return await serve_tail(face, request, job, 0, TextFrames())


ROUTES = [
    Route("GET", "/api/jobs/{job_id}/logs", "get_job_logs", get_logs),
    Route("GET", "/api/jobs/{job_id}/logs/tail", "tail_job_logs", tail_logs),
]
