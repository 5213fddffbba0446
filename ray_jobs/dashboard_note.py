"""A note of how a dashboard was started, for one that dies together with its watcher.

It is in our folder of the session, and tells an environment: only its user may read it, and only
what that user wrote is believed. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator

from ray_jobs.node_processes import SESSION_OPTION, Process

NAME = "dashboard.json"


def write_note(dashboard: Process) -> None:
    """Leave a note of a dashboard in its session's folder. Raises OSError."""
    session = dashboard.option(SESSION_OPTION)
    if os.stat(session).st_uid != os.geteuid():
        raise PermissionError(f"{session} is another user's")
    folder = _folder(session)
    os.makedirs(folder, 0o700, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=folder, prefix=NAME)  # with mode 0600
    try:
        with open(descriptor, "w") as file:
            json.dump([dashboard.argv, dashboard.env, dashboard.folder], file)
        os.replace(aside, os.path.join(folder, NAME))
    except OSError:
        os.unlink(aside)
        raise


def read_note(session: str) -> Process | None:
    """Return the dashboard of a session's note, with the pid 0; None without one of this user's."""
    try:
        path = os.path.join(_folder(session), NAME)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            argv, env, folder = json.load(file)
    except (OSError, ValueError):
        return None
    return Process(0, argv, env, folder)


@contextlib.contextmanager
def exclusively(session: str) -> Iterator[None]:
    """Keep other watchers of a session's dashboard waiting. Raises OSError."""
    folder = os.open(session, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _folder(session: str) -> str:
    """Return our folder in a session's: `supervisor.node.work_dir`, which needs ray."""
    return os.path.join(session, "ray_jobs")
