"""What is in an attempt's folder, and files of this user's where others may write too.

Standard library only.

Ray's session and log folders are open to all users of a machine: what is found there may be
another's, who could read it, or have it lead elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat

STATUS_FILE = "status.json"
CONTROL_SOCKET = "control.sock"
#: A link that leads nowhere: its text says who has begun the attempt.
KEEPER_LINK = "keeper"


def own_folder(path: str) -> None:
    """Make a folder that only this user may enter, or find it.

    Raises OSError, `PermissionError` for another user's.
    """
    os.makedirs(path, 0o700, exist_ok=True)
    found = os.lstat(path)
    need_own(found, stat.S_IFDIR, path)
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)


def open_own(path: str, flags: int, owner: int | None = None) -> int:
    """Open a file of this user's, and not what a link leads to. One that is made is its owner's.

    Args:
        owner: The id of the user whose it must be, if not this one's.

    Raises OSError, `PermissionError` for another user's file, and for what is no file.
    """
    # Not blocking: a pipe whose other end nobody has would be waited for.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads
            raise PermissionError(errno.EPERM, "Not used, as it is no file", path) from None
        raise
    try:
        need_own(os.fstat(fd), stat.S_IFREG, path, owner)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_to_write(path: str, flags: int = 0) -> int:
    """Open a log that only this user may read, made where there is none. Raises as `open_own`."""
    fd = open_own(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        if os.fstat(fd).st_mode & 0o077:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def need_own(found: os.stat_result, kind: int, path: str, owner: int | None = None) -> None:
    """Raise `PermissionError` unless something is of a kind (`stat.S_IFDIR`), and this user's.

    Args:
        owner: As of `open_own`.
    """
    wanted = os.geteuid() if owner is None else owner
    if stat.S_IFMT(found.st_mode) != kind or found.st_uid != wanted:
        raise PermissionError(errno.EPERM, "Not used, as it may be another user's", path)
