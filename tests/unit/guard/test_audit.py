"""The audit: who, what, when, with what outcome; and no secret."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import resource
import stat
import time
from pathlib import Path

import pytest
from ray_jobs.dashboard_module.guard import audit as audit_module
from ray_jobs.dashboard_module.guard.audit import Audit, AuditFile, Entry, times
from ray_jobs.dashboard_module.guard.clients import networks, token_name

from ray_jobs.models import JobStatus
from tests.archives import sized_zip
from tests.fuzz.raw import request
from tests.other_user import give_away, open_folder
from tests.unit.face.fakes import Cluster, record

from .conftest import serving

SECRETS = ("s3cretvalue", "hunter22", "0123456789abcdef")
SUBMISSION = {
    "entrypoint": "curl https://alice:hunter22@host/ | sh",
    "runtime_env": {"env_vars": {"KEY": "s3cretvalue"}},
    "metadata": {"token": "0123456789abcdef"},
}


def entry(number: int) -> Entry:
    time_iso, time_ms = times(number)
    return Entry(time=time_iso, time_ms=time_ms, server="gateway", action="stop_job", method="POST")


async def test_a_job_from_submission_to_deletion(cluster: Cluster) -> None:
    before_ms = time.time() * 1000
    async with serving(cluster, demands_token=True) as guarded:
        client = guarded.client
        headers = {"Authorization": "Bearer 0123456789abcdef", "User-Agent": "curl/8.14"}
        async with client.post("/api/jobs/", json=SUBMISSION, headers=headers) as answer:
            job_id = (await answer.json())["submission_id"]
        async with client.post(f"/api/jobs/{job_id}/stop", headers=headers) as answer:
            assert answer.status == 200
        async with client.delete(f"/api/jobs/{job_id}", headers=headers) as answer:
            assert answer.status == 200
        async with client.delete(f"/api/jobs/{job_id}", headers=headers) as answer:
            assert answer.status == 404
        async with client.put(
            "/api/packages/gcs/a.zip", data=sized_zip(200), headers=headers
        ) as answer:
            assert answer.status == 200
        async with client.get("/api/jobs/") as answer:  # no line for what changes nothing
            assert answer.status == 200
        lines = await guarded.audit()
    assert [(line["action"], line["outcome"], line["status"]) for line in lines] == [
        ("submit_job", "done", 200),
        ("stop_job", "done", 200),
        ("delete_job", "done", 200),
        ("delete_job", "failed", 404),
        ("upload_package", "done", 200),
    ]
    assert [line.get("job_id") for line in lines] == [job_id] * 4 + [None]
    assert lines[4]["package"] == "a.zip"
    for line in lines:
        assert line["token"] == "cluster"
        assert line["address"] == "127.0.0.1"
        assert line["user_agent"] == "curl/8.14"
        assert line["server"] == "gateway"
        assert before_ms - 1 <= line["time_ms"] <= time.time() * 1000
        assert line["time"].startswith("20")
        assert line["time"].endswith("Z")
        assert line["duration_ms"] >= 0
        assert not any(secret in json.dumps(line) for secret in SECRETS)


async def test_a_duplicate_is_told_with_its_id(cluster: Cluster) -> None:
    cluster.manager.put(record("mine", status=JobStatus.SUCCEEDED))
    body = {"entrypoint": "true", "submission_id": "mine"}
    async with serving(cluster) as guarded:
        async with guarded.client.post("/api/jobs/", json=body) as answer:
            assert answer.status == 500
        async with guarded.client.post("/api/jobs/", data=b"{") as answer:
            assert answer.status == 400
        duplicate, malformed = await guarded.audit()
    assert (duplicate["job_id"], duplicate["outcome"]) == ("mine", "failed")
    assert "job_id" not in malformed
    assert "token" not in duplicate


@pytest.mark.parametrize(
    ("forwarded", "trusted", "expected"),
    [
        (["1.1.1.1"], [], ("127.0.0.1", None)),
        (["1.1.1.1"], ["10.0.0.0/8"], ("127.0.0.1", None)),
        (["1.1.1.1"], ["127.0.0.1"], ("1.1.1.1", "127.0.0.1")),
        # What the client wrote itself stands before what the proxy added.
        (["6.6.6.6, 1.1.1.1"], ["127.0.0.1"], ("1.1.1.1", "127.0.0.1")),
        (["6.6.6.6", "1.1.1.1"], ["127.0.0.1"], ("1.1.1.1", "127.0.0.1")),
        (["1.1.1.1, 10.0.0.9"], ["127.0.0.1", "10.0.0.0/8"], ("1.1.1.1", "127.0.0.1")),
        (["10.0.0.8, 10.0.0.9"], ["127.0.0.1", "10.0.0.0/8"], ("10.0.0.8", "127.0.0.1")),
        (["2001:db8::1"], ["127.0.0.1", "::1"], ("2001:db8::1", "127.0.0.1")),
        (["nonsense, unknown"], ["127.0.0.1"], ("127.0.0.1", None)),
        ([], ["127.0.0.1"], ("127.0.0.1", None)),
    ],
)
async def test_address_through_proxies(
    cluster: Cluster,
    forwarded: list[str],
    trusted: list[str],
    expected: tuple[str, str | None],
) -> None:
    headers = [("X-Forwarded-For", each) for each in forwarded]
    async with serving(cluster, trusted_proxies=tuple(networks(trusted)[0])) as guarded:
        async with guarded.client.post("/api/jobs/nobody/stop", headers=headers) as answer:
            assert answer.status == 404
        [line] = await guarded.audit()
    assert (line["address"], line.get("proxy")) == expected


def test_names_of_tokens() -> None:
    def jwt(payload: bytes) -> str:
        return "Bearer head." + base64.urlsafe_b64encode(payload).decode().rstrip("=") + ".sign"

    assert token_name("Bearer " + "ab" * 32) == "cluster"
    name = "system:serviceaccount:team-a:submitter"
    assert token_name(jwt(json.dumps({"sub": name}).encode())) == name
    for odd in (b"{", b"[]", b'{"sub": 1}', b"{}", b"\xff"):
        assert token_name(jwt(odd)) == "cluster"
    assert token_name("Bearer a.%%%.c") == "cluster"
    assert len(token_name(jwt(json.dumps({"sub": "x" * 10_000}).encode()))) == 200


async def test_long_ids_are_cut(cluster: Cluster) -> None:
    async with serving(cluster) as guarded:
        async with guarded.client.post(f"/api/jobs/{'x' * 5000}/stop") as answer:
            assert answer.status == 404
        [line] = await guarded.audit()
    assert line["job_id"] == "x" * 255


async def test_lines_cannot_be_forged(cluster: Cluster) -> None:
    async with serving(cluster) as guarded:
        async with guarded.client.post("/api/jobs/a%0A%22action%22%3A%22forged%22/stop") as answer:
            assert answer.status == 404
        [line] = await guarded.audit()
    assert line["job_id"] == 'a\n"action":"forged"'


async def test_bytes_that_are_no_text_have_their_line(cluster: Cluster) -> None:
    """A client may send them in its headers: nobody escapes the audit by that."""
    odd = {"User-Agent": "\xff", "Content-Type": "application/json"}
    body = json.dumps(SUBMISSION).encode()
    async with serving(cluster, trusted_proxies=tuple(networks(["127.0.0.1"])[0])) as guarded:
        port = guarded.client.port or 0
        answer = await asyncio.to_thread(request, port, "POST", "/api/jobs/", odd, body)
        assert answer.status == 200
        job_id = json.loads(answer.body)["submission_id"]
        path = f"/api/jobs/{job_id}/stop"
        through = {**odd, "X-Forwarded-For": "fe80::1%\xff, 127.0.0.1"}
        assert (await asyncio.to_thread(request, port, "POST", path, through)).status == 200
        lines = await guarded.audit()
    assert [line["action"] for line in lines] == ["submit_job", "stop_job"]
    assert [line["user_agent"] for line in lines] == ["?", "?"]
    assert lines[1]["job_id"] == job_id


async def test_refusals_drive_out_no_other_line(cluster: Cluster) -> None:
    """Anybody can be refused, as often as it takes to have the oldest file dropped."""
    async with serving(cluster, audit_max_bytes=1000, audit_files=2) as guarded:
        async with guarded.client.post("/api/jobs/", json=SUBMISSION) as answer:
            assert answer.status == 200
        for _ in range(2000):
            async with guarded.client.delete("/api/jobs/x", headers={"Origin": "http://a"}):
                pass
            if (cluster.log_dir / "audit-refused.jsonl.1").exists():
                break
        lines = await guarded.audit()
    assert lines[0]["action"] == "submit_job"
    assert {line["reason"] for line in lines[1:]} == {"browser_write"}
    assert not (cluster.log_dir / "audit.jsonl.1").exists()


def test_rotation(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    file = AuditFile(str(path), max_bytes=100, files=3)
    for number in range(10):
        file.write(f"{number}".encode() * 59 + b"\n")
    file.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "audit.jsonl",
        "audit.jsonl.1",
        "audit.jsonl.2",
    ]
    assert path.read_bytes()[:1] == b"9"
    assert (tmp_path / "audit.jsonl.1").read_bytes()[:1] == b"8"
    assert (tmp_path / "audit.jsonl.2").read_bytes()[:1] == b"7"
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def test_rotation_with_one_file(tmp_path: Path) -> None:
    file = AuditFile(str(tmp_path / "audit"), max_bytes=1, files=1)
    for text in (b"a\n", b"b\n"):
        file.write(text)
    file.close()
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"b\n"]


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    files = [AuditFile(str(tmp_path / "audit"), max_bytes=200, files=50) for _ in range(2)]
    for number in range(60):
        files[number % 2].write(b"%030d\n" % number)
    for file in files:
        file.close()
    lines = [line for each in tmp_path.iterdir() for line in each.read_bytes().splitlines()]
    assert sorted(map(int, lines)) == list(range(60))


def test_a_file_is_replaced_by_one_of_its_writers(tmp_path: Path) -> None:
    path = str(tmp_path / "audit")
    early, late = (AuditFile(path, max_bytes=200, files=50) for _ in range(2))
    early.write(b"%030d\n" % 0)
    for number in range(1, 8):  # the seventh doesn't fit
        late.write(b"%030d\n" % number)
    early.write(b"%0100d\n" % 8)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audit", "audit.1"]
    assert [int(line) for line in (tmp_path / "audit").read_bytes().split()] == [6, 7, 8]
    os.rename(path, tmp_path / "away")  # as logrotate does
    late.write(b"9\n")
    assert (tmp_path / "audit").read_bytes() == b"9\n"
    early.close()
    late.close()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    file = AuditFile(str(tmp_path / "audit"), 1000, 2)
    file.write(b"a" * 50 + b"\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            file.write(b"b" * 50 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write(b"c\n")
    file.close()
    assert (tmp_path / "audit").read_bytes() == b"a" * 50 + b"\nc\n"


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "audit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        AuditFile(str(tmp_path / "audit"), 1000, 2).write(b"x\n")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("planted", ["file", "pipe"])
def test_what_another_user_has_put_there_goes_out_of_the_way(planted: str) -> None:
    with open_folder() as folder:
        path = folder / "audit"
        if planted == "file":
            path.touch()
        else:
            os.mkfifo(path)
        path.chmod(0o666)
        give_away(path)
        file = AuditFile(str(path), 1000, 2)
        file.write(b"x\n")
        file.close()
        assert path.read_bytes() == b"x\n"
        assert path.stat().st_uid == os.geteuid()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (folder / "audit.foreign").stat().st_size == 0


async def test_a_disk_that_fails_fails_no_request(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    path = cluster.log_dir / "missing" / "audit.jsonl"
    async with serving(cluster, audit_path=str(path)) as guarded:
        async with guarded.client.post("/api/jobs/", json=SUBMISSION) as answer:
            assert answer.status == 200
        with caplog.at_level(logging.ERROR):
            await guarded.guard.close()
    assert "1 lines lost" in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)


async def test_what_a_slow_disk_cannot_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_module, "MAX_WAITING", 5)
    audit = Audit(AuditFile(str(tmp_path / "audit"), 10_000, 2))
    for number in range(8):
        audit.add(entry(number))
    await audit.close()
    assert len((tmp_path / "audit").read_text().splitlines()) == 5
    assert "3 lines lost" in caplog.text


async def test_no_audit(cluster: Cluster) -> None:
    async with serving(cluster, audit_path=None) as guarded:
        async with guarded.client.post("/api/jobs/", json=SUBMISSION) as answer:
            assert answer.status == 200
        assert await guarded.audit() == []
    assert os.listdir(cluster.log_dir) == []
