"""Listing jobs page by page."""

from __future__ import annotations

from urllib.parse import urlencode

from ray_jobs.client.transport import Transport
from ray_jobs.models import API_PREFIX, JobInfo, JobPage, JobStatus

#: The largest page that is asked for.
PAGE_SIZE = 500


async def list_pages(
    transport: Transport, wanted: list[JobStatus], limit: int | None
) -> list[JobInfo]:
    """Return jobs from our server, newest first.

    Args:
        wanted: Their states; any when empty.
        limit: At most so many.
    """
    jobs: list[JobInfo] = []
    cursor: str | None = None
    while limit is None or len(jobs) < limit:
        size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(jobs))
        query = [("limit", str(size)), *(("status", str(one)) for one in wanted)]
        if cursor is not None:
            query.append(("cursor", cursor))
        answer = await transport.request("GET", f"{API_PREFIX}/jobs", query=urlencode(query))
        page = answer.check().json(JobPage)
        jobs.extend(page.jobs)
        cursor = page.next_cursor
        if cursor is None:
            break
    return jobs[:limit]
