"""Where the logs of jobs are on the head node, for all who look for them there."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

#: The folder, in the session's log folder, for logs of jobs that ended long ago.
SHELF = "finished-jobs"
#: The text to which a log that was removed is a link, in the session's log folder.
NOTICE = "ray_jobs_removed_log.txt"
#: Names of logs begin with this, as Ray's own tools know.
LOG_PREFIX = "job-driver-"


def log_name(submission_id: str) -> str:
    """Return the name of a job's log file, which Ray's own tools know."""
    return f"{LOG_PREFIX}{submission_id}.log"


def id_of_log(name: str) -> str:
    """Return the submission id of a log's name.

    Not the whole of it for a log that was set aside, of which nobody writes any more.
    """
    return name.removeprefix(LOG_PREFIX).removesuffix(".log")


def places(path: str) -> tuple[str, str]:
    """Return where a job's log may be, given where it is at first.

    To be looked at in this order: it is moved once at most, from the first place to the second.
    """
    directory, name = os.path.split(path)
    return path, os.path.join(directory, SHELF, name)


def is_removed_log(path: str) -> bool:
    """Return whether what is in the place of a job's log only tells that the log was removed."""
    return any(os.path.islink(place) for place in places(path))


def open_log(path: str) -> int | None:
    """Open a job's log for reading, wherever it is, given where it is at first.

    Returns a file descriptor, or None if there is no such log. Raises `OSError`.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    for place in places(path):
        with contextlib.suppress(FileNotFoundError):
            try:
                return os.open(place, flags)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            # Our links lead to one text. Another user's may lead anywhere.
            return os.open(os.path.join(os.path.dirname(path), NOTICE), flags)
    return None


def close_all(fds: Iterable[int]) -> None:
    """Close files. In a thread where they have no name any more: to free space takes time."""
    for fd in fds:
        os.close(fd)
