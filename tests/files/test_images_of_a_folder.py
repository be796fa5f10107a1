"""Whoever lists the images of a folder lists the same ones, in the same order, and each file once."""

import os
import shutil
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from anomalib_defend.data import PredictFolder
from anomalib_defend.decision import command, models
from anomalib_defend.files.images import images_in
from anomalib_defend.models.components.other_images import find_images
from anomalib_defend.scoring.inputs import Inputs


def predicted(folder):
    data = PredictFolder(folder)
    data.setup()
    return data.test_data.samples.image_path.tolist()


SCORED = {
    "PredictFolder": predicted,
    "score FOLDER": lambda folder: list(Inputs([str(folder)])),
    "score GLOB": lambda folder: list(Inputs([f"{folder}/**/*.*g"])),
}
LEARNED = {
    "threshold --calibrate": command._images,
    "outlier_dir": lambda folder: find_images("outlier_dir", folder, {}, subfolders=True),
    "fake_dir": lambda folder: find_images("fake_dir", folder, {}),
}


def listed(who, folder):
    return [Path(path).relative_to(folder).as_posix() for path in {**SCORED, **LEARNED}[who](folder)]


everyone = pytest.mark.parametrize("who", [*SCORED, *LEARNED])
learning = pytest.mark.parametrize("who", LEARNED)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for index, name in enumerate(("0.png", os.fsdecode(b"St\xfcck.jpg"), "2.png", "below/3.png", "below/\u00fc.png")):
        pixels = np.random.default_rng(index).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def expected(who):
    names = ["0.png", "2.png", os.fsdecode(b"St\xfcck.jpg")]
    return names if who == "fake_dir" else [*names, "below/3.png", "below/\u00fc.png"]


@everyone
def test_hidden_twins_are_left_out(who, folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        for name in ("@eaDir", "__MACOSX", ".thumbnails", "#recycle"):
            (path.parent / name).mkdir(exist_ok=True)
            shutil.copy(path, path.parent / name)
        for name in ("Thumbs.db", ".DS_Store"):
            (path.parent / name).write_bytes(b"\0")
    assert sorted(listed(who, folder)) == sorted(expected(who))


@pytest.mark.parametrize("who", [who for who in (*SCORED, *LEARNED) if who not in {"fake_dir", "score GLOB"}])
def test_linked_folders_are_entered_once(who, folder, tmp_path):
    (folder / "below").rename(tmp_path / "elsewhere")
    (folder / "below").symlink_to(tmp_path / "elsewhere")
    (folder / "z").symlink_to(tmp_path / "elsewhere")
    (folder / "below" / "loop").symlink_to(folder)
    assert sorted(listed(who, folder)) == sorted(expected(who))


@everyone
def test_the_folder_may_have_another_unicode_form(who, folder, tmp_path):
    stored, asked = (tmp_path / normalize(form, "Gr\u00f6\u00dfe") for form in ("NFD", "NFC"))
    folder.rename(stored)
    if asked.exists():
        pytest.skip("this file system takes both for one name")
    assert [str(path) for path in {**SCORED, **LEARNED}[who](asked)] == [
        str(path) for path in {**SCORED, **LEARNED}[who](stored)
    ]


@learning
def test_a_link_beside_its_target_counts_once(who, folder):
    (folder / "1.png").symlink_to(folder / "0.png")
    os.link(folder / "2.png", folder / "4.png")
    assert sorted(listed(who, folder)) == sorted(expected(who))


@pytest.mark.parametrize("who", ["PredictFolder", *LEARNED])
def test_other_formats_are_counted(who, folder, caplog):
    for name in ("0.heic", "1.JFIF", "2.mpo", "3.nef"):
        (folder / name).write_text("")
    assert sorted(listed(who, folder)) == sorted(expected(who))
    assert "4 file(s) in " in caplog.text
    assert "(1 .heic, 1 .jfif, 1 .mpo, 1 .nef)" in caplog.text


@learning
def test_more_than_eight_bits_are_refused(who, folder):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "9.png")
    with pytest.raises(ValueError, match=r"9\.png \(anomalib would clip its 16-bit .* convert it to 8 bits"):
        models.measure(lambda _: (0.0, None), LEARNED[who](folder))


def test_one_folder_alone(folder):
    assert images_in(folder, subfolders=False) == [str(folder / name) for name in expected("fake_dir")]
