from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from ray_jobs.client.packaging import Package, build, digest_of, find_content, uri_of
from ray_jobs.errors import InvalidRuntimeEnv, PackageTooLarge

NO_LIMIT = 1 << 30


def silent(_done: int) -> None:
    pass


def digest(package: Package) -> str:
    return digest_of(find_content(package), silent)


def packed(package: Package) -> zipfile.ZipFile:
    output = io.BytesIO()
    content = find_content(package)
    assert build(content, output, NO_LIMIT, silent) == digest_of(content, silent)
    return zipfile.ZipFile(output)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.py").write_text("print(1)")
    (root / "sub" / "run.sh").write_text("true")
    (root / "sub" / "run.sh").chmod(0o755)
    return root


def test_directory(project: Path) -> None:
    archive = packed(Package("working_dir", project))
    assert archive.namelist() == ["a.py", "empty/", "sub/run.sh"]
    assert archive.read("a.py") == b"print(1)"
    modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()}
    assert modes == {"a.py": 0o644, "empty/": 0o755, "sub/run.sh": 0o755}


def test_parent_directory_and_module(project: Path) -> None:
    archive = packed(Package("py_modules[0]", project, include_parent=True))
    assert archive.namelist() == ["project/a.py", "project/empty/", "project/sub/run.sh"]
    assert packed(Package("py_modules[0]", project / "a.py", kind="module")).namelist() == ["a.py"]


def test_excludes(project: Path) -> None:
    archive = packed(Package("working_dir", project, excludes=("/sub", "empty")))
    assert archive.namelist() == ["a.py"]


def test_same_bytes_same_package(project: Path) -> None:
    package = Package("working_dir", project)
    first, output = digest(package), io.BytesIO()
    build(find_content(package), output, NO_LIMIT, silent)
    os.utime(project / "a.py", (1, 1))
    (project / "a.py").chmod(0o600)
    again = io.BytesIO()
    build(find_content(package), again, NO_LIMIT, silent)
    assert digest(package) == first
    assert again.getvalue() == output.getvalue()


@pytest.mark.parametrize("change", ["content", "name", "mode", "empty", "parent", "boundary"])
def test_other_bytes_other_hash(project: Path, change: str) -> None:
    package = Package("working_dir", project)
    first = digest(package)
    if change == "content":
        (project / "a.py").write_text("print(2)")
    elif change == "name":
        (project / "a.py").rename(project / "b.py")
    elif change == "mode":
        (project / "a.py").chmod(0o755)
    elif change == "empty":
        (project / "empty").rmdir()
    elif change == "parent":
        package = Package("working_dir", project, include_parent=True)
    else:
        (project / "a.py").write_text("print(1")
        (project / "a.py").rename(project / "a.py)")
    assert digest(package) != first


def test_uris(project: Path) -> None:
    package = Package("working_dir", project)
    uri = uri_of(package, digest(package))
    assert uri.startswith("gcs://_ray_pkg_")
    assert uri.endswith(".zip")


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.zip", ".zip"), ("a.tar.gz", ".tar.gz"), ("a.tgz", ".tar.gz"), ("a.tar.xz", ".tar.xz")],
)
def test_uris_of_archives(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"archive")
    package = Package("working_dir", path, kind="file")
    first = uri_of(package, digest(package))
    assert first.endswith(ending)
    path.write_bytes(b"another")
    assert uri_of(package, digest(package)) != first


def test_wheels_keep_their_name_and_get_their_hash(tmp_path: Path) -> None:
    path = tmp_path / "my_pkg-1.0-py3-none-any.whl"
    uri = uri_of(Package("py_modules[0]", path, kind="file"), "abcdef0123456789" * 4)
    assert uri == "gcs://my_pkg-1.0-0habcdef0123456789-py3-none-any.whl"
    path = tmp_path / "my_pkg-1.0-7-py3-none-any.whl"
    uri = uri_of(Package("py_modules[0]", path, kind="file"), "abcdef0123456789" * 4)
    assert uri == "gcs://my_pkg-1.0-7habcdef0123456789-py3-none-any.whl"
    with pytest.raises(InvalidRuntimeEnv, match="wheel"):
        uri_of(Package("py_modules[0]", tmp_path / "x.whl", kind="file"), "ab")


def test_too_large_names_the_largest_files(project: Path) -> None:
    for index in range(7):
        (project / f"data{index}").write_bytes(os.urandom(10_000 * (index + 1)))
    content = find_content(Package("working_dir", project))
    output = io.BytesIO()
    with pytest.raises(PackageTooLarge) as caught:
        build(content, output, 50_000, silent)
    message = str(caught.value)
    assert "48.8 KiB" in message
    assert "its files take 273.4 KiB unpacked" in message
    assert "given up at the limit" in message
    assert "working_dir" in message
    lines = message.splitlines()[1:]
    assert [line.split()[-1] for line in lines] == [f"data{index}" for index in (6, 5, 4, 3, 2)]
    assert "s3://" in (caught.value.hint or "")
    assert "excludes" in (caught.value.hint or "")
    # The list of contents may follow, but no more of the files.
    assert len(output.getvalue()) < 60_000


def test_unreadable_file(project: Path) -> None:
    content = find_content(Package("working_dir", project))
    (project / "a.py").unlink()
    with pytest.raises(InvalidRuntimeEnv, match=r"a\.py can't be read"):
        digest_of(content, silent)


def test_name_that_is_not_utf8(project: Path) -> None:
    Path(os.fsdecode(os.fsencode(project) + b"/\xff")).write_text("x")
    content = find_content(Package("working_dir", project))
    digest_of(content, silent)
    with pytest.raises(InvalidRuntimeEnv, match="not UTF-8"):
        build(content, io.BytesIO(), NO_LIMIT, silent)


def test_progress(project: Path) -> None:
    content = find_content(Package("working_dir", project))
    told: list[int] = []
    digest_of(content, told.append)
    assert told == [8, 12]
    assert content.total_bytes == 12
