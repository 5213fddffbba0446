"""A gateway (`ray-jobs serve`) for tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from tests.cluster import BIN, Cluster

READY_WORDS = "ray-jobs gateway listening on "
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
    with process.stdout as output:
        try:
            url = ""
            seen = []
            for line in output:
                seen.append(line)
                if line.startswith(READY_WORDS):
                    url = line.removeprefix(READY_WORDS).strip()
                    break
            assert url, "".join(seen)
            yield url
        finally:
            process.terminate()
            code = process.wait(STOP_TIMEOUT_S)
            assert code == 0 or ends_by_itself
