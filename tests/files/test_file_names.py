"""One rule for names: hidden ones, equal ones, and how they are written into text."""

import os
import tempfile
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.files.names import (
    Spellings,
    category_name,
    from_text,
    is_hidden,
    is_image,
    is_other_format,
    on_disk,
    to_text,
)

anything = st.text(st.characters(), max_size=30) | st.binary(max_size=30).map(os.fsdecode)
escapes = st.lists(st.sampled_from(["\\", "x", "u", "e4", "00e4", "\udce4", "\n", "a"])).map("".join)


@given(anything | escapes)
def test_a_written_name_is_utf8_in_one_line_and_can_be_read_back(name):
    text = to_text(name)
    assert len(text.encode("utf-8").splitlines()) <= 1
    assert not any(ord(letter) < 32 for letter in text)
    assert from_text(text) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("photo 1 (a).png", "photo 1 (a).png"),
        ("Größe/犬.png", "Größe/犬.png"),
        ("St\udcfcck.png", r"St\xfcck.png"),
        (r"St\xfcck.png", r"St\x5cxfcck.png"),
        ("a\nb", r"a\x0ab"),
        ("\ud800", r"\ud800"),
        ("C:\\new\\folder", "C:\\new\\folder"),
    ],
)
def test_what_is_written(name, text):
    assert to_text(name) == text
    assert from_text(text) == name


@pytest.mark.parametrize(
    "name",
    [
        *("._0.png", ".DS_Store", ".hidden.png", "a/.git/b.png", "Thumbs.db", "THUMBS.DB", "desktop.ini", "@eaDir"),
        *("@eaDir/0.png", "a/__MACOSX/b/0.png", "$RECYCLE.BIN", "System Volume Information", "#recycle/a.png"),
    ],
)
def test_hidden(name):
    assert is_hidden(name)


@pytest.mark.parametrize(
    "name", ["0.png", "./a/0.png", "../a/0.png", "a/../b.png", "a.b/c", "eaDir", "my@eaDir", "a/#1"]
)
def test_not_hidden(name):
    assert not is_hidden(name)


def test_images_and_other_formats():
    of_cameras = ["h.mpo", "i.NRW", "j.srw", "k.pef", "l.rwl"]
    names = ["a.JPG", "b.webp", "c.jfif", "d.HEIC", "e.txt", "._a.jpg", "._d.heic", "f.tiff", "g", *of_cameras]
    assert [name for name in names if is_image(name)] == ["a.JPG", "b.webp", "f.tiff"]
    assert [name for name in names if is_other_format(name)] == ["c.jfif", "d.HEIC", *of_cameras]


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3), st.sampled_from(["NFC", "NFD"]))
def test_a_file_is_found_under_a_name_in_another_unicode_form(parts, form):
    parts = [
        part for part in ("".join(c for c in part if c not in "/\0" and c.isprintable()) for part in parts) if part
    ]
    parts = [part for part in parts if part not in {".", ".."}] or ["é"]
    stored, asked = ("/".join(normalize(kind, part) for part in parts) for kind in (form, "NFC"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, stored)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert on_disk(Path(folder, asked)).samefile(path)
        assert category_name(stored) == category_name(asked)


def test_two_files_of_equal_names_are_two_files(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / normalize(form, "ü.png")).write_text(form)
    for form in ("NFC", "NFD"):
        assert on_disk(tmp_path / normalize(form, "ü.png")).read_text() == form
    half = normalize("NFC", "ü") + normalize("NFD", "ü")
    for form in ("NFC", "NFD"):
        (tmp_path / normalize(form, "üü")).touch()
    assert Spellings().on_disk(str(tmp_path / half)) == str(tmp_path / half)  # which of the two nobody knows
