"""Packages: asking for them pins them; uploads are streamed, bounded, and few at once."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
from collections.abc import AsyncIterator, Callable

import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from ray_jobs.dashboard_module import hosting, package_check, turns
from ray_jobs.dashboard_module.guard import GuardSettings
from ray_jobs.dashboard_module.ports import SMALL_PACKAGE_BYTES
from ray_jobs.dashboard_module.routes import answers, definitions
from yarl import URL

from ray_jobs.errors import ServerNotReady
from tests.archives import MIB, inflating_zip, listing_zip, tar_of, zip_of, zip_of_size

from .fakes import Client, Cluster

PATH = "/api/packages/gcs/_ray_pkg_0123.zip"
URI = "gcs://_ray_pkg_0123.zip"


async def test_a_missing_package(client: Client, cluster: Cluster) -> None:
    async with client.get(PATH) as answer:
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await answer.text() == f"Package {URI} does not exist"


async def test_uploading_and_finding_a_package(client: Client, cluster: Cluster) -> None:
    data = zip_of_size(10 * MIB)  # ten times the whole application's limit
    async with client.put(PATH, data=io.BytesIO(data)) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    assert cluster.packages.stored == {URI: data}
    async with client.get(PATH) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    assert cluster.packages.pinned == [URI]


@pytest.mark.parametrize(
    "headers", [{"User-Agent": "Mozilla/5.0"}, {"User-Agent": "x", "Accept-Language": "en"}]
)
async def test_browsers_pin_nothing(
    client: Client, cluster: Cluster, headers: dict[str, str]
) -> None:
    cluster.packages.stored[URI] = b""
    async with client.get(PATH, headers=headers) as answer:
        assert answer.status == 200
    assert cluster.packages.pinned == []


async def test_a_package_whose_length_is_over_the_limit(client: Client, cluster: Cluster) -> None:
    cluster.packages.max_bytes = 1000
    async with client.put(PATH, data=b"x" * 1001) as answer:
        assert answer.status == 413
        text = await answer.text()
    assert "1,001 bytes" in text
    assert "1,000" in text
    assert "remote URI" in text
    assert not cluster.packages.stored


async def test_a_package_that_grows_over_the_limit(client: Client, cluster: Cluster) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * MIB

    async with client.put(PATH, data=endless()) as answer:
        assert answer.status == 413
    assert not cluster.packages.stored


async def test_an_upload_that_stops_halfway(client: Client, cluster: Cluster) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(
        f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode() + b"half"
    )
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert b" 200 " not in answer
    assert not cluster.packages.stored
    async with client.get(PATH) as response:
        assert response.status == 404


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no zip", "isn't a zip archive"),
        (zip_of({"../evil": b""}), "outside of the folder"),
        (inflating_zip(20 * MIB), "unpacks to more than"),
    ],
)
async def test_packages_that_no_node_should_unpack(
    client: Client, cluster: Cluster, data: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_check, "FREE_UNPACKED_BYTES", 10 * MIB)
    async with client.put(PATH, data=data) as answer:
        assert answer.status == 400
        assert words in await answer.text()
    assert not cluster.packages.stored


async def test_a_body_that_trickles(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BODY_GRACE_S", 0.3)
    monkeypatch.setattr(answers, "MIN_BODY_BYTES_PER_S", 1000)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n".encode())

    async def trickle() -> None:
        for _ in range(300_000):  # never so long without a byte
            writer.write(b"x")
            await asyncio.sleep(0.02)

    sending = asyncio.ensure_future(trickle())
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    sending.cancel()
    writer.close()
    assert not cluster.packages.stored


async def test_uploads_wait_for_each_other_but_not_for_ever(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_TIMEOUT_S", 0.2)
    cluster.packages.writable.clear()
    data = zip_of_size(9 * MIB)

    async def upload(name: str) -> tuple[int, str | None]:
        async with client.put(f"/api/packages/gcs/{name}", data=io.BytesIO(data)) as answer:
            return answer.status, answer.headers.get("Retry-After")

    first = [asyncio.ensure_future(upload(f"first{n}.zip")) for n in range(2)]
    for _ in first:
        await asyncio.wait_for(cluster.packages.put_begun.acquire(), 5)
    assert await upload("late.zip") == (503, "10")
    cluster.packages.writable.set()
    assert await asyncio.gather(*first) == [(200, None)] * 2
    assert await upload("late.zip") == (200, None)


@pytest.mark.parametrize(
    "path",
    [
        "/api/packages/s3/a.zip",
        "/api/packages/gcs/a%2Fb.zip",
        "/api/packages/gcs/%2E%2E",
        "/api/packages/gcs/a%00b",
        "/api/packages/gcs/" + "a" * 300,
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_impossible_names(client: Client, cluster: Cluster, method: str, path: str) -> None:
    url = URL(str(client.make_url("/"))[:-1] + path, encoded=True)
    async with client.session.request(method, url) as answer:
        assert answer.status == 400
    assert not cluster.packages.stored
    assert not cluster.packages.pinned


async def test_two_big_uploads_at_once_but_any_small_ones(client: Client, cluster: Cluster) -> None:
    cluster.packages.writable.clear()

    async def upload(name: str, size: int) -> int:
        data = io.BytesIO(zip_of_size(size))
        async with client.put(f"/api/packages/gcs/{name}", data=data) as answer:
            return answer.status

    big = [asyncio.ensure_future(upload(f"big{n}.zip", 9 * MIB)) for n in range(4)]
    for _ in range(2):
        await asyncio.wait_for(cluster.packages.put_begun.acquire(), 5)
    small = asyncio.ensure_future(upload("small.zip", 10))
    await asyncio.wait_for(cluster.packages.put_begun.acquire(), 5)
    assert cluster.packages.most_putting == 3
    cluster.packages.writable.set()
    assert await asyncio.gather(*big, small) == [200] * 5
    assert len(cluster.packages.stored) == 5
    assert cluster.packages.most_putting == 3


@pytest.mark.parametrize(
    ("name", "make", "is_costly"),
    [
        ("a.zip", lambda: listing_zip(5000), False),
        ("a.zip", lambda: listing_zip(20_000), True),  # below a megabyte
        ("a.zip", lambda: zip_of_size(MIB), False),
        ("a.zip", lambda: zip_of_size(9 * MIB), True),
        ("a.tar.gz", lambda: tar_of([]), True),
    ],
)
async def test_costly_packages_are_left_to_a_process_of_its_own(
    client: Client, cluster: Cluster, name: str, make: Callable[[], bytes], is_costly: bool
) -> None:
    data = make()

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    for body in (io.BytesIO(data), pieces()):  # the second one's length isn't told
        async with client.put(f"/api/packages/gcs/{name}", data=body) as answer:
            assert answer.status == 200
    assert cluster.packages.stored == {f"gcs://{name}": data}
    assert cluster.packages.by_process == [f"gcs://{name}"] * 2 * is_costly


async def test_a_compressed_package_counts_by_what_comes_out(
    client: Client, cluster: Cluster
) -> None:
    data = listing_zip(100_000)
    sent = gzip.compress(data)
    assert len(sent) < SMALL_PACKAGE_BYTES < len(data)
    headers = {"Content-Encoding": "gzip"}
    async with client.put(PATH, data=io.BytesIO(sent), headers=headers) as answer:
        assert answer.status == 200
    assert cluster.packages.stored == {URI: data}
    assert cluster.packages.by_process == [URI]


async def test_a_refusal_after_the_client_was_told_to_go_on(
    client: Client, cluster: Cluster
) -> None:
    cluster.packages.max_bytes = 1000
    data = io.BytesIO(b"x" * 2000)
    async with client.put(PATH, data=data, expect100=True) as answer:
        assert answer.status == 413
        assert "remote URI" in await answer.text()


async def test_one_client_leaves_checks_to_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose archives take long to be looked through has one looked through at a time."""
    monkeypatch.setattr(turns, "TURN_TIMEOUT_S", 0.2)
    guarded = GuardSettings()
    config = hosting.face_config(
        guarded, log_dir="", session_name="", ray_version="", ray_commit=""
    )
    face = cluster.face(
        client=lambda request: request.headers["X-Client"], check_share=config.check_share
    )
    async with face.checks.hold("busy"):
        with pytest.raises(ServerNotReady, match="looked through"):
            async with face.checks.hold("busy"):
                pass
        async with face.checks.hold("other"):
            pass
    await face.close()


async def test_one_client_leaves_uploads_to_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_TIMEOUT_S", 0.2)
    face = cluster.face(client=lambda request: request.headers["X-Client"], upload_share=2)
    app = aiohttp.web.Application()
    app.add_routes(definitions(face))
    async with TestClient(TestServer(app)) as client:

        async def upload(of: str, name: str) -> int:
            data, headers = zip_of_size(10), {"X-Client": of}
            async with client.put(
                f"/api/packages/gcs/{name}", data=data, headers=headers
            ) as answer:
                status: int = answer.status
                return status

        async with contextlib.AsyncExitStack() as stack:
            for number in range(2):  # that never come to their end
                _, writer = await asyncio.open_connection(client.host, client.port)
                stack.callback(writer.close)
                head = f"PUT /api/packages/gcs/{number} HTTP/1.1\r\nHost: x\r\nX-Client: slow"
                writer.write(f"{head}\r\nContent-Length: 9\r\n\r\n".encode())
                await writer.drain()
            # Until both have come, there is room.
            while await upload("slow", "late.zip") != 503:
                pass
            assert await upload("other", "other.zip") == 200
        # And until the server knows that both have gone, there is none.
        while await upload("slow", "late.zip") != 200:
            pass
        assert not face.uploads._shares
        await face.close()
