"""The last lines of a log, from our server without what is before them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import NamedTuple, TypeVar

from ray_jobs import errors
from ray_jobs.client.retry import RetryPolicy, past_limits
from ray_jobs.client.transport import Transport, quoted
from ray_jobs.models import API_PREFIX

#: So much is read at first, and so many times as much when that holds too few lines.
FIRST_READ_BYTES = 64 * 1024
GROWTH = 8

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")

Text = TypeVar("Text", str, bytes)


class Part(NamedTuple):
    """Bytes of a log, and where they are in it."""

    start: int
    data: bytes
    size: int  #: Of the whole log.

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def check_lines(lines: int | None) -> None:
    """Raise `InvalidRequest` for what is no number of lines."""
    if lines is not None and (isinstance(lines, bool) or not isinstance(lines, int) or lines < 0):
        raise errors.InvalidRequest(f"lines must be a whole number from 0, got {lines!r}.")


def last_lines(text: Text, count: int) -> Text:
    """Return the last lines of a text; one without a newline at its end counts.

    A line ends with a newline alone: a progress bar, which goes back to its beginning, is one.
    """
    newline: Text = "\n" if isinstance(text, str) else b"\n"
    if count == 0:
        return text[:0]
    start = len(text) - text.endswith(newline)
    for _ in range(count):
        start = text.rfind(newline, 0, start)
        if start < 0:
            return text
    return text[start + 1 :]


async def read_last_lines(
    transport: Transport, job_id: str, count: int, policy: RetryPolicy
) -> Part:
    """Return the last lines of a log on our server.

    Fewer, where bytes before them were dropped.

    Raises:
        JobNotFound: there is no such job.
        NotASubmission: it is a driver that was started outside the job API.
    """

    async def read(wanted: str) -> Part:
        return await past_limits(lambda: _read(transport, job_id, wanted), policy)

    read_bytes = FIRST_READ_BYTES
    while True:
        part = await read(f"-{read_bytes}")
        is_all = part.start == 0
        while part.end < part.size:  # it ends before a gap
            part, is_all = await read(f"{part.end}-"), True
        # The first line of a part may have begun before it.
        if is_all or part.data.count(b"\n") > count:
            kept = last_lines(part.data, count)
            return Part(part.end - len(kept), kept, part.size)
        read_bytes *= GROWTH


async def _read(transport: Transport, job_id: str, wanted: str) -> Part:
    answer = await transport.request(
        "GET",
        f"{API_PREFIX}/jobs/{quoted(job_id)}/logs",
        headers={"Range": f"bytes={wanted}"},
    )
    if answer.status not in (206, 416):
        data = answer.check().body  # a log that has no ranges
        return Part(0, data, len(data))
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None:
        raise errors.UnexpectedResponse(f"{answer.where} has no Content-Range.")
    size = int(found[2])
    return Part(size, b"", size) if found[1] is None else Part(int(found[1]), answer.body, size)


async def without_start(
    chunks: AsyncGenerator[str, None], length: int
) -> AsyncGenerator[str, None]:
    """Yield a stream of text without its first `length` characters. Closes it at the end."""
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if length < len(chunk):
                yield chunk[length:]
            length = max(length - len(chunk), 0)
