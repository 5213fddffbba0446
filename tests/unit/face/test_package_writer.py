"""The process that looks through a costly package: what an archive may make of it is bounded."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest
from ray_jobs.dashboard_module.package_check import BadPackage
from ray_jobs.dashboard_module.package_writer import REFUSED, write_package

from tests.archives import greedy_xz, tar_member, tar_of, zip_of

ENDLESS = """
from ray_jobs.dashboard_module import package_writer
def check(*_):
    while True:
        pass
package_writer.check_package, package_writer.MAX_CHECK_CPU_S = check, 1
package_writer.main("127.0.0.1:1", "gcs://a.tar.gz")
"""


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.tar.xz", greedy_xz(tar_of([tar_member("a")], "w"), 38), "more memory"),
        ("a.tar.gz", zip_of(), "isn't a tar"),
    ],
)
async def test_refusals(name: str, data: bytes, words: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        with pytest.raises(BadPackage, match=words):
            await write_package("127.0.0.1:1", f"gcs://{name}", file)


def test_time() -> None:
    done = subprocess.run([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, timeout=30)
    assert done.returncode == REFUSED
    assert b"more than 1 s of CPU" in done.stdout
