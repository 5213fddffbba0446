"""Checking a big package and writing it into the GCS, from a process of its own.

Ray's client copies the value several times while it holds the GIL, a thread's call too: half a
second for the largest, in which Ray's dashboard would answer nobody. And the memory for it is that
process's, for as long as it takes. What an archive makes of the check is bounded, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import IO

from ray_jobs.own_python import python_command

from .package_check import BadPackage, check_package

logger = logging.getLogger(__name__)

#: The exit status for a package that is refused; why is what the process has said.
REFUSED = 3
#: What the check may take: address space, and seconds of CPU. Half a million files take 300 MB and
#: 30 s.
MAX_CHECK_BYTES = 1024 * 1024 * 1024
MAX_CHECK_CPU_S = 120


async def write_package(gcs_address: str, uri: str, file: IO[bytes]) -> None:
    """Store a package, a regular file.

    Raises `BadPackage`, and `RuntimeError` if the GCS doesn't take it.
    """
    file.flush()  # the process reads what the descriptor has
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    process = await asyncio.create_subprocess_exec(
        *python_command(f"from {__name__} import main; main(*sys.argv[1:])", gcs_address, uri),
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        refusal, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode == REFUSED:
        raise BadPackage(refusal.decode(errors="replace"))
    if process.returncode != 0:
        words = said.decode(errors="replace")
        logger.error("Writing %s failed (%d): %s", uri, process.returncode, words)
        raise RuntimeError(f"The GCS didn't take {uri}.")


def main(gcs_address: str, uri: str) -> None:
    try:
        with limits(MAX_CHECK_BYTES, MAX_CHECK_CPU_S):
            check_package(uri, sys.stdin.buffer)
    except BadPackage as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.stdout.flush()
        sys.exit(REFUSED)
    sys.stdin.buffer.seek(0)
    data = sys.stdin.buffer.read()
    from ray_jobs import _ray

    _ray.put_package_from_outside(gcs_address, uri, data)


@contextlib.contextmanager
def limits(memory_bytes: int, cpu_s: int) -> Iterator[None]:
    """Have this process get no more memory (`MemoryError`) and CPU (`BadPackage`)."""

    def give_up(*_: object) -> None:
        raise BadPackage(f"The package takes more than {cpu_s} s of CPU to be looked through.")

    wanted = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_CPU: cpu_s}
    before = {each: resource.getrlimit(each) for each in wanted}
    signal.signal(signal.SIGXCPU, give_up)
    try:
        for each, most in wanted.items():
            hard = before[each][1]
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(each, (soft, hard))
        yield
    finally:
        for each, found in before.items():
            resource.setrlimit(each, found)
