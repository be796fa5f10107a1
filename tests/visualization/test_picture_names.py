"""One name an image, the same in each run, which every file system takes."""

import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_defend.visualization import picture_name

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
names = st.text(st.characters(exclude_characters="/\0", exclude_categories=[]), min_size=1, max_size=60)
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def is_portable(name: str) -> bool:
    parts = name.split("/")
    return all(
        re.fullmatch(r"[A-Za-z0-9_-]+(\.png)?", part)
        and part.partition(".")[0].lower() not in RESERVED
        and len(part.encode()) <= 255
        for part in parts
    ) and name.endswith(".png")


@settings(deadline=None)
@given(paths)
def test_every_file_system_takes_the_name(path):
    assert is_portable(picture_name(path))
    assert picture_name(path) == picture_name(path)


@settings(deadline=None)
@given(paths, paths)
def test_two_images_differ_in_more_than_case(one, other):
    same = os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100
    assert (picture_name(one).lower() == picture_name(other).lower()) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/data/dog/day1/0.png", "/data/cat/day1/0.png"),
        ("/data/dog/0.png", "/data/dog/0.jpg"),
        ("/data/Dog/A.png", "/data/dog/a.png"),
        ("/data/a:b.png", "/data/a_b.png"),
        (unicodedata.normalize("NFC", "/data/Grün.png"), unicodedata.normalize("NFD", "/data/Grün.png")),
        (os.fsdecode(b"/data/Gr\xfcn.png"), os.fsdecode(b"/data/Gr\xf6n.png")),
    ],
)
def test_similar_paths_have_names_of_their_own(one, other):
    assert is_portable(picture_name(one))
    assert picture_name(one).lower() != picture_name(other).lower()


def test_the_name_is_readable_and_stays():
    # files that an earlier run has written are found again: this name must never change
    assert picture_name("/data/dog/day1/Grün (2).jpeg") == "dog/day1/Grun_2_-cf5c684ae5712025.png"
    assert picture_name("/con/COM¹/nul.png").startswith("con_/COM1_/nul_-")


def test_spellings_of_one_path_share_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert picture_name("a/../b/0.png") == picture_name(Path("./b/0.png")) == picture_name(tmp_path / "b" / "0.png")


def test_long_names_are_cut():
    path = "/data/" + "ä" * 120 + "/" + "図" * 80 + "x" * 200 + ".png"
    assert is_portable(picture_name(path))
    assert max(map(len, picture_name(path).split("/"))) < 143  # what encrypted file systems leave of 255
