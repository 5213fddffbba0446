"""Writing a big package into the GCS from a process of its own.

Ray's client copies the value several times while it holds the GIL, a thread's call too: half a
second for the largest, in which Ray's dashboard would answer nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

logger = logging.getLogger(__name__)

#: Handed to the process at once: under 1 ms.
SLICE_BYTES = 1024 * 1024


async def write_package(gcs_address: str, uri: str, data: bytes) -> None:
    """Store a package. Raises `RuntimeError` if the GCS doesn't take it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        gcs_address,
        uri,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        # It reads everything before it says anything.
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), SLICE_BYTES):
                process.stdin.write(memoryview(data)[start : start + SLICE_BYTES])
                await process.stdin.drain()
        process.stdin.close()
        said = await process.stderr.read()
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code != 0:
        logger.error("Writing %s failed (%d): %s", uri, code, said.decode(errors="replace"))
        raise RuntimeError(f"The GCS didn't take {uri}.")


def main(gcs_address: str, uri: str) -> None:
    data = sys.stdin.buffer.read()
    from ray_jobs import _ray

    _ray.put_package_from_outside(gcs_address, uri, data)


if __name__ == "__main__":
    main(*sys.argv[1:])
