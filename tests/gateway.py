"""A gateway (`ray-jobs serve`) for tests."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.cluster import BIN, Cluster

READY_WORDS = "ray-jobs gateway listening on "
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


@contextlib.contextmanager
def running_gateway(
    cluster: Cluster,
    *arguments: str,
    env: dict[str, str] | None = None,
    address: str | None = None,
    ends_by_itself: bool = False,
) -> Iterator[str]:
    """Serve a cluster's jobs on a free port. Yields the URL.

    What it says is kept in the cluster's folder, in a file `gateway-*.out`.

    `address` is the GCS's; by default that of the cluster. With `ends_by_itself` it is killed
    meanwhile.
    """
    where = address or cluster.gcs_address
    words = ["ray-jobs", "serve", "--address", where, "--port", "0", *arguments]
    process = subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        env={**cluster.env, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    [descriptor, path] = tempfile.mkstemp(".out", "gateway-", cluster.folder)
    urls: queue.Queue[str] = queue.Queue()
    keeping = threading.Thread(target=_keep, args=(process.stdout, descriptor, urls), daemon=True)
    keeping.start()
    try:
        url = urls.get(timeout=START_TIMEOUT_S)
        assert url, Path(path).read_text()
        yield url
    finally:
        process.terminate()
        code = process.wait(STOP_TIMEOUT_S)
        keeping.join(STOP_TIMEOUT_S)
        assert code == 0 or ends_by_itself


def _keep(output: IO[str], descriptor: int, urls: queue.Queue[str]) -> None:
    """Write what a gateway says into a file, and tell the URL; "" at its end."""
    with output, open(descriptor, "w") as file:
        for line in output:
            file.write(line)
            file.flush()
            if line.startswith(READY_WORDS):
                urls.put(line.removeprefix(READY_WORDS).strip())
    urls.put("")
