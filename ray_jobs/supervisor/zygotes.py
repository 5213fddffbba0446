"""This node's zygote, from which its keepers are forked: found, or started."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import time

from ray_jobs.keeper.clock import read_boot_id
from ray_jobs.keeper.files import own_folder
from ray_jobs.keeper.processes import identity_of
from ray_jobs.supervisor.node import connect_unix, raylet_lives, raylet_pid, work_dir

ZYGOTE_START_TIMEOUT_S = 20.0
ZYGOTE_RETRY_S = 0.02
#: What the interpreter of the zygote needs of this environment, which may be a job's own.
ZYGOTE_ENV_VARS = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


async def connect_to_zygote(
    source: str,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to this node's zygote, starting it where there is none.

    Never returns once the node's raylet is gone: so is this process in a moment, as all of Ray's.
    """
    directory = work_dir()
    own_folder(directory)
    try:
        name = zygote_name(source)
    except ProcessLookupError:
        await asyncio.Event().wait()
    deadline = time.monotonic() + ZYGOTE_START_TIMEOUT_S
    while True:
        try:
            return await connect_unix(directory, name)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
        if not raylet_lives():
            await asyncio.Event().wait()
        try:
            await asyncio.get_running_loop().run_in_executor(
                None, start_zygote, source, directory, name
            )
        except subprocess.CalledProcessError as error:
            if error.returncode > 0 or time.monotonic() > deadline:
                # Its own words would be the whole program.
                reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise ZygoteError(
                    f"The node's zygote can't be started: {''.join(reason) or error.returncode}"
                ) from None
            continue  # it was killed
        except subprocess.TimeoutExpired:
            raise ZygoteError(
                f"The node's zygote doesn't start: nothing in {ZYGOTE_START_TIMEOUT_S:g} s."
            ) from None
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return await connect_unix(directory, name)
        # Another supervisor is about to start it; there is no event to wait for across
        # processes before its socket exists.
        await asyncio.sleep(ZYGOTE_RETRY_S)


class ZygoteError(RuntimeError):
    """No zygote can be started on this node."""


def zygote_name(source: str) -> str:
    """Return the name of the socket of this node's zygote.

    Raises ProcessLookupError once the node's raylet is gone.
    """
    # A container sees other files than its node: it needs a zygote of its own.
    namespace = os.stat("/proc/self/ns/mnt").st_ino
    # And one of another version, whose orders may differ, keeps what it has.
    version = hashlib.sha256(source.encode()).hexdigest()[:8]
    # Nodes may share the folder, on one machine or by a network disk.
    raylet, start = identity_of(raylet_pid())
    return f"zygote-{namespace}-{version}-{raylet}-{start}-{read_boot_id()[:8]}"


def start_zygote(source: str, directory: str, name: str) -> None:
    """Start this node's zygote and return once it listens. Blocking.

    Raises CalledProcessError if it can't be started, or is killed before it listens.
    """
    # The interpreter below a virtual environment: it must outlive the job's environment.
    python = getattr(sys, "_base_executable", None) or sys.executable
    subprocess.run(
        [python, "-I", "-S", "-c", source, directory, name, str(raylet_pid())],
        env={key: os.environ[key] for key in ZYGOTE_ENV_VARS if key in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
        timeout=ZYGOTE_START_TIMEOUT_S,
    )
