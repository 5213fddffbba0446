"""Where the logs of jobs are on the head node, for all who look for them there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable

from ray_jobs.keeper.files import need_own, open_own

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


def is_link(place: str, owner: int | None = None) -> bool:
    """Return whether a log was removed from a place: there is a link of ours then.

    Args:
        owner: As of `open_own`.
    """
    try:
        need_own(os.lstat(place), stat.S_IFLNK, place, owner)
    except (FileNotFoundError, PermissionError):
        return False
    return True


def is_removed_log(path: str) -> bool:
    """Return whether what is in the place of a job's log only tells that the log was removed."""
    return any(is_link(place) for place in places(path))


def open_log(path: str) -> int | None:
    """Open a job's log for reading, wherever it is, given where it is at first.

    Returns a file descriptor, or None if there is no such log: what another user has put in its
    place, or a job a folder in the place of its own, is none. Raises `OSError`.
    """
    folder = os.path.dirname(path)
    owner = _owner_for_root(folder)
    for place in places(path):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            try:
                return open_own(place, os.O_RDONLY, owner)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            if is_link(place, owner):  # ours lead to one text; another user's may lead anywhere
                return open_own(os.path.join(folder, NOTICE), os.O_RDONLY, owner)
    return None


def _owner_for_root(folder: str) -> int | None:
    """Return whose logs root reads: a gateway of root's may serve a cluster of another user."""
    if os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(folder).st_uid
    return None


def close_all(fds: Iterable[int]) -> None:
    """Close files. In a thread where they have no name any more: to free space takes time."""
    for fd in fds:
        os.close(fd)
