"""A folder of images that are not normal: which are refused, and how they are read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_defend.models.components.other_images import find_images


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "own"
    (folder / "below").mkdir(parents=True)
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.{'jpg' if index % 2 else 'png'}")
    Image.fromarray(pixels[:9]).save(folder / "below" / "4.png")
    return folder


def test_the_images_are_found(folder, tmp_path):
    assert [path.name for path in find_images("fakes", folder, {})] == ["0.png", "1.jpg", "2.png", "3.jpg"]
    assert len(find_images("fakes", folder, {"test": ["other.png"]}, subfolders=True)) == 5
    with pytest.raises(ValueError, match=r"fakes='.*nowhere' is not a folder"):
        find_images("fakes", tmp_path / "nowhere", {})
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds no images .*; subfolders are not looked at"):
        find_images("fakes", tmp_path / "empty", {})


def test_images_of_the_data_set_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds 1 of the normal training images"):
        find_images("fakes", folder, {"normal training": [str(folder / ".." / "own" / "2.png"), "other.png"]})
    with pytest.raises(ValueError, match=r"holds 1 of the validation images \(.*0\.png\): they must be others"):
        find_images("fakes", folder, {"test": ["other.png"], "validation": [str(folder / "0.png")]})
    copy = tmp_path / "under_another_name.png"
    copy.write_bytes((folder / "below" / "4.png").read_bytes())
    assert find_images("fakes", folder, {"test": [str(copy)]})  # not looked at
    with pytest.raises(ValueError, match=r"holds 1 of the test images \(.*4\.png\)"):
        find_images("fakes", folder, {"test": [str(copy)]}, subfolders=True)


def test_damaged_files_are_named(folder):
    (folder / "5.png").write_bytes(b"no image")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"2 of 5 files are not usable images: .*2\.png .*, .*5\.png .*Replace"):
        find_images("fakes", folder, {})
