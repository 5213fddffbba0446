"""Starting the entrypoint as the keeper's child. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from ray_jobs.keeper.processes import oom_score, set_oom_score

TYPE_CHECKING = False  # typing's own would cost every keeper its memory
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: An ignored signal stays ignored over exec, so each is set to its default; the C library keeps
#: the first two real-time ones to itself.
SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def start_entrypoint(order: dict[str, Any], log_fd: int) -> int:
    """Start the command of an order, and return its pid.

    In a session of its own, with default signal handlers and an empty signal mask (Ray blocks
    SIGINT in its processes), stdin from /dev/null, stdout and stderr to the log. Raises OSError if
    it can't be executed, naming what failed.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, order["niceness"])
    try:
        os.chdir(order["cwd"])
    except OSError as error:
        raise explained(error, "working directory " + order["cwd"]) from None
    own_score = oom_score()
    # The job before the workers of others, and its keeper after them: that is to report its end.
    set_oom_score(order.get("oom_score", own_score))  # earlier versions give none
    try:
        return spawn(order, log_fd)
    except NotImplementedError:
        # A Python that was built for a C library before glibc 2.26.
        return fork(order, log_fd)
    except OSError as error:
        raise explained(error, order["argv"][0]) from None
    finally:
        set_oom_score(own_score)
        os.chdir("/")


def explained(error: OSError, what: str) -> OSError:
    number = error.errno or errno.EINVAL
    return OSError(number, f"{os.strerror(number)} ({what})")


def spawn(order: dict[str, Any], log_fd: int) -> int:
    """The cheap way: no copy of this process is made."""
    return os.posix_spawn(
        order["argv"][0],
        order["argv"],
        order["env"],
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log_fd, 1),
            (os.POSIX_SPAWN_DUP2, log_fd, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=SIGNALS,
    )


def fork(order: dict[str, Any], log_fd: int) -> int:
    """The same for a Python that can't spawn into a session of its own."""
    error_read, error_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        become(order, log_fd, error_write)
    os.close(error_write)
    with open(error_read, "rb") as errors:
        failure = errors.read()
    if failure:
        os.waitpid(pid, 0)
        raise explained(OSError(int(failure), ""), order["argv"][0])
    return pid


def become(order: dict[str, Any], log_fd: int, error_write: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execve(order["argv"][0], order["argv"], order["env"])
    except BaseException as error:  # noqa: BLE001 - a forked child must not return
        os.write(error_write, str(getattr(error, "errno", None) or errno.EINVAL).encode())
    finally:
        os._exit(127)
