"""Folders, files, globs, lists and standard input, in order, with any name."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anomalib_defend.scoring.inputs import Inputs, read_list

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: b"\0" not in name and name not in {b".", b"/", b"\r", b"\n"}
)


def test_each_kind_in_the_order_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.png", "a/10.jpg", "a/b/0.png", "a/b/.hidden.png", "a/c/1.heic", "a/notes.txt", "a/.git/x.png",
                 "single.gif", "g1.png", "g2.png"):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    Path("list.txt").write_text("\ufeffa/2.png\r\n\r\nnowhere.png\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"from stdin.png\nlast"))))
    inputs = Inputs(["a", "single.gif", "g?.png", "list.txt", "-", "g1.png"])
    assert list(inputs) == [
        "a/10.jpg", "a/2.png", "a/b/0.png", "single.gif", "g1.png", "g2.png", "a/2.png", "nowhere.png",
        "from stdin.png", "last", "g1.png",
    ]  # fmt: skip
    assert inputs.other_formats == {".heic": 1}
    assert not inputs.countable
    again = Inputs(["a", "**/*.png"])
    assert list(again) == list(again)
    assert "a/b/0.png" in list(again)[3:]


@given(st.lists(NAMES, min_size=1))
@example([b"two\nlines", b"St\xfcck", b"x"])
def test_a_list_with_zero_bytes_holds_any_name(names) -> None:
    file = io.BufferedReader(io.BytesIO(b"".join(name + b"\0" for name in names)))
    assert [os.fsencode(path) for path in read_list(file, "list")] == names


def test_a_list_of_find_may_begin_with_its_folder() -> None:
    content = b".\0./a\0./b.png\0"
    assert list(read_list(io.BufferedReader(io.BytesIO(content)), "list")) == [".", "./a", "./b.png"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize(
    "text", ["a.png", "/a/b\n", "a.png\nb.png\n", "a.png\r\nb.png\r\n", "\u72ac.png\n\u732b.png\n"]
)
def test_a_list_in_utf_16_is_refused(text, encoding) -> None:
    file = io.BufferedReader(io.BytesIO(text.encode(encoding)))
    with pytest.raises(ValueError, match="list is UTF-16: save it as UTF-8"):
        list(read_list(file, "list"))


def test_a_list_is_not_read_whole() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file:
        os.write(writing, b"first.png\n" + b"x" * 1000)
        paths = read_list(file, "standard input")
        assert next(paths) == "first.png"  # the pipe is open still
        os.write(writing, b"y\nlast")
        os.close(writing)
        assert list(paths) == ["x" * 1000 + "y", "last"]


def test_a_long_list_with_zero_bytes() -> None:
    names = [f"{index:07d}.png" for index in range(30_000)]
    file = io.BufferedReader(io.BytesIO("\0".join(names).encode()))
    assert list(read_list(file, "list")) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [("a.png\n".encode("utf-16"), "UTF-16: save it as UTF-8"), (b"a\n" * 70_000 + b"b\0c", "zero bytes after some")],
)
def test_lists_that_cannot_be_read_say_so(tmp_path, content, message) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(Inputs([str(tmp_path / "list.txt")]))


def test_what_is_not_there_is_said_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for argument, message in (("photos", "photos does not exist"), ("*.png", "finds no file")):
        with pytest.raises(FileNotFoundError, match=message):
            Inputs([argument])
    with pytest.raises(ValueError, match="named twice"):
        Inputs(["-", "-"])


def test_other_unicode_forms_of_a_name_are_found(tmp_path) -> None:
    (tmp_path / "Stu\u0308ck.png").write_text("")
    if (tmp_path / "St\u00fcck.png").exists():
        pytest.skip("this file system takes both for one name")
    assert list(Inputs([str(tmp_path / "St\u00fcck.png")])) == [str(tmp_path / "Stu\u0308ck.png")]


def test_a_glob_in_another_unicode_form(tmp_path) -> None:
    (tmp_path / "Gro\u0308\u00dfe").mkdir()
    (tmp_path / "Gro\u0308\u00dfe" / "Stu\u0308ck 1.png").write_text("")
    found = [str(tmp_path / "Gro\u0308\u00dfe" / "Stu\u0308ck 1.png")]
    assert list(Inputs([f"{tmp_path}/Gr\u00f6\u00dfe/St\u00fcck*"])) == found
    assert list(Inputs([f"{tmp_path}/Gro\u0308\u00dfe/Stu\u0308ck*"])) == found


def test_a_glob_in_a_hidden_folder_finds_what_is_not_hidden_there(tmp_path) -> None:
    (tmp_path / ".data" / "@eaDir").mkdir(parents=True)
    for name in ("0.png", "@eaDir/0.png"):
        (tmp_path / ".data" / name).write_text("")
    assert list(Inputs([f"{tmp_path}/.data/**/*.png"])) == [f"{tmp_path}/.data/0.png"]
    with pytest.raises(FileNotFoundError, match="finds no file that is not hidden"):
        Inputs([f"{tmp_path}/.data/*/0.png"])


def test_a_folder_that_cannot_be_read_is_an_input_of_its_own(tmp_path, monkeypatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text("")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(Inputs([str(tmp_path)]))
    assert [Path(path).relative_to(tmp_path).as_posix() for path in found] == ["a/1.png", "c/1.png", "b"]
