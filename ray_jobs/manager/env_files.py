"""Files on the head that a runtime environment names, read without holding up the manager.

`pip` and `uv` may name a file of requirements, `conda` one of YAML, or a folder: clients read files
of their own machine, so that over REST alone it is one of the head's. Ray looks at it when the
environment is checked, whatever it is: one on a network disk that hangs, or one that never ends,
would have every call of the manager wait.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

from ray_jobs.errors import InvalidRuntimeEnv
from ray_jobs.scrubbing import shown
from ray_jobs.timeouts import timeout

REQUIREMENTS_FIELDS = ("pip", "uv")
YAML_SUFFIXES = (".yml", ".yaml")
MAX_FILE_BYTES = 1024 * 1024
READ_TIMEOUT_S = 10.0
#: A read that hangs keeps one. What needs another then waits, and is refused; nothing else does.
THREADS = 4


def files_of(runtime_env: Mapping[str, Any]) -> dict[str, str]:
    """Return the files and folders that a runtime environment names, by its fields."""
    found = {}
    for field in REQUIREMENTS_FIELDS:
        value = runtime_env.get(field)
        path = value.get("packages") if isinstance(value, dict) else value
        if isinstance(path, str):
            found[field] = path
    conda = runtime_env.get("conda")
    if isinstance(conda, str):
        as_path = PurePath(conda)
        if as_path.suffix in YAML_SUFFIXES or as_path.is_absolute():  # others are names
            found["conda"] = conda
    return found


class EnvFiles:
    """Reads such files in threads.

    Args:
        normalise: Returns an environment with what its files say in their place.
    """

    def __init__(self, normalise: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._normalise = normalise
        self._threads: ThreadPoolExecutor | None = None

    async def read(self, runtime_env: dict[str, Any]) -> dict[str, Any]:
        """Return an environment without files: with what they say in their place.

        Raises `InvalidRuntimeEnv`, and what the normalisation raises.
        """
        files = files_of(runtime_env)
        if not files:
            return runtime_env
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ray-jobs-env-files")
        reading = asyncio.get_running_loop().run_in_executor(
            self._threads, self._read, runtime_env, files
        )
        try:
            async with timeout(READ_TIMEOUT_S):
                return await reading
        except asyncio.TimeoutError:
            raise InvalidRuntimeEnv(
                f"Malformed runtime_env: {', '.join(files)} can't be read on the head node within"
                f" {READ_TIMEOUT_S:g} s. Give what the file holds instead of its path."
            ) from None

    def _read(self, runtime_env: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
        for field, path in files.items():
            if not os.path.exists(path):
                raise InvalidRuntimeEnv(
                    f"Malformed runtime_env: {field} names {shown(path)!r}, which isn't there on"
                    " the head node."
                )
            try:
                is_too_long = is_longer(path, MAX_FILE_BYTES)
            except OSError as error:
                raise InvalidRuntimeEnv(
                    f"Malformed runtime_env: the file of {field} on the head node can't be read:"
                    f" {error.strerror}."
                ) from None
            if is_too_long:
                raise InvalidRuntimeEnv(
                    f"Malformed runtime_env: the file of {field} on the head node has more than"
                    f" {MAX_FILE_BYTES:,} bytes."
                )
        return self._normalise(runtime_env)


def is_longer(path: str, size: int) -> bool:
    """Return whether a file has more bytes. Raises OSError.

    By reading it: some of the kernel's say that they have none.
    """
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return len(file.read(size + 1)) > size
