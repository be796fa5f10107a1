"""Downloads are checksummed, go on where they stopped, and write nothing outside of their folder."""

import hashlib
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from anomalib_defend.data.download import Source, fetch, fetch_folder, unpack

CONTENT = bytes(range(256)) * 1000


def source_of(url: str, content: bytes, name: str) -> Source:
    return Source(f"{url}/{name}", hashlib.md5(content, usedforsecurity=False).hexdigest())


@pytest.fixture
def served(tmp_path, serve):
    """A file on a server, its source, and the server's handler."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "file.bin").write_bytes(CONTENT)
    url, handler = serve(tmp_path / "server")
    return source_of(url, CONTENT, "file.bin"), handler


def test_a_file_is_fetched_once(tmp_path, served):
    source, handler = served
    for _ in range(2):
        path = fetch(source, tmp_path / "root")
        assert path.read_bytes() == CONTENT
    assert len(handler.requests) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(tmp_path, served, ranges):
    source, handler = served
    handler.cut, handler.ranges = 100_000, ranges
    with pytest.raises(RuntimeError, match=r"Download of http://127.*file\.bin failed .*it goes on where it stopped"):
        fetch(source, tmp_path / "root")
    assert not (tmp_path / "root" / "file.bin").exists()
    handler.cut = None
    assert fetch(source, tmp_path / "root").read_bytes() == CONTENT
    assert handler.requests == ["bytes=0-", "bytes=100000-"]


def test_a_download_that_stopped_after_the_last_byte(tmp_path, served):
    source, _ = served
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file.bin.part").write_bytes(CONTENT)
    assert fetch(source, tmp_path / "root").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, served):
    source, _ = served
    with pytest.raises(RuntimeError, match=r"http://127.*file\.bin was downloaded but its MD5 is not 0000"):
        fetch(source._replace(md5="0" * 32), tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_damaged_file_of_the_same_name_is_replaced(tmp_path, served):
    (tmp_path / "file.bin").write_bytes(b"something else")
    assert fetch(served[0], tmp_path).read_bytes() == CONTENT


def test_an_unreachable_file_is_named(tmp_path, served):
    source, _ = served
    with pytest.raises(RuntimeError, match=r"Download of http://127.*missing\.bin failed.*404"):
        fetch(source._replace(url=source.url.replace("file", "missing")), tmp_path)


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            member.size = 4 if member.isfile() else 0
            tar.addfile(member, io.BytesIO(b"text"))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "unsafe",
    [
        member("../evil"),
        member("data/../../evil"),
        member("/tmp/evil"),  # noqa: S108
        member("data/evil", tarfile.SYMTYPE, "../.."),
        member("data/evil", tarfile.SYMTYPE, "good"),
        member("data/evil", tarfile.LNKTYPE, "data/good"),
        member("data/evil", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_an_unsafe_tar_is_refused(tmp_path, unsafe):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    archive = tar_of(tmp_path / "archive.tar.gz", member("data/good"), unsafe)
    with pytest.raises(RuntimeError, match=r"archive\.tar\.gz cannot be unpacked \(it is not safe: .*evil"):
        unpack(archive, folder)
    assert everything_below(tmp_path) == {"a", "a/b", "archive.tar.gz"}
    assert not Path("/tmp/evil").exists()  # noqa: S108


@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/tmp/evil", "C:/evil", "..\\evil"])  # noqa: S108
def test_an_unsafe_zip_is_refused(tmp_path, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        file.writestr("data/good", "text")
        file.writestr(name, "text")
    with pytest.raises(RuntimeError, match=r"it is not safe: .*evil"):
        unpack(tmp_path / "archive.zip", folder)
    assert everything_below(tmp_path) == {"a", "a/b", "archive.zip"}
    assert not Path("/tmp/evil").exists()  # noqa: S108


def test_a_zip_with_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("data/evil")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16  # made on Unix
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as file:
        file.writestr("data/good", "text")
        file.writestr(link, "../..")
    with pytest.raises(RuntimeError, match="it is not safe: data/evil is a link"):
        unpack(tmp_path / "archive.zip", tmp_path)
    assert everything_below(tmp_path) == {"archive.zip"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_plain_file_may_be_named_like_a_link(tmp_path, kind):
    name = "notes (a link)"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "archive", "w") as file:
            file.writestr(name, "text")
    else:
        tar_of(tmp_path / "archive", member(name))
    unpack(tmp_path / "archive", tmp_path)
    assert (tmp_path / name).read_text() == "text"


@pytest.mark.parametrize("content", [b"", b"<html>not an archive</html>", b"PK\x03\x04 truncated"])
def test_something_else_than_an_archive_is_refused(tmp_path, content):
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"archive\.zip cannot be unpacked"):
        unpack(tmp_path / "archive.zip", tmp_path)


@pytest.fixture
def served_archive(tmp_path, serve):
    (tmp_path / "server").mkdir()
    archive = tar_of(tmp_path / "server" / "data.tar.gz", member("data/set/a"), member("data/set/b"))
    url, _ = serve(archive.parent)
    return source_of(url, archive.read_bytes(), archive.name)


def test_a_folder_is_fetched_and_the_archive_removed(tmp_path, served_archive):
    fetch_folder(served_archive, tmp_path / "root", "data/set")
    files = [path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*")]
    assert sorted(files) == ["data", "data/set", "data/set/a", "data/set/b"]


def test_the_users_own_archive_is_used_and_kept(tmp_path, served_archive):
    archive = tmp_path / "server" / "data.tar.gz"
    fetch_folder(served_archive._replace(url="http://127.0.0.1:9/data.tar.gz"), archive.parent, "data/set")
    assert (tmp_path / "server" / "data" / "set" / "a").read_text() == "text"
    assert archive.exists()


def test_what_lies_there_is_not_overwritten(tmp_path, served_archive):
    mine = tmp_path / "root" / "data" / "set" / "mine"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(FileExistsError, match=r"data/set exists but is not complete. Move it away"):
        fetch_folder(served_archive, tmp_path / "root", "data/set")
    assert mine.exists()


def test_an_archive_without_the_folder_leaves_nothing(tmp_path, served_archive):
    with pytest.raises(RuntimeError, match=r"data\.tar\.gz holds no other"):
        fetch_folder(served_archive, tmp_path / "root", "other")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["data.tar.gz"]
