"""Miniature data sets in VOC layout."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# the models are tiny: threads that wait for each other on a busy machine cost more than they bring
torch.set_num_threads(1)

Labels = dict[str, dict[str, int]]  # image -> category -> flag, 0 for "only difficult objects"
CATEGORIES = ("cat", "dog", "person")
TRAIN: Labels = {
    **{f"t0{i}": {"dog": 1} for i in range(8)},
    "t08": {"dog": 1, "cat": 1},
    "t09": {"dog": 0, "person": 1},
    **{f"t{i}": {"cat": 1} for i in range(10, 16)},
    **{f"t{i}": {"person": 1} for i in range(16, 20)},
}
VAL: Labels = {
    "v00": {"dog": 1},
    "v01": {"dog": 0},
    "v02": {"dog": 1, "cat": 1},
    "v03": {"cat": 1},
    "v04": {"cat": 1, "person": 1},
    "v05": {"person": 1},
    "v06": {"person": 1},
    "v07": {},
}


def write_devkit(
    devkit: Path,
    *,
    train: Labels | None = None,
    val: Labels | None = None,
    segmentation: list[str] | None = None,
    xml: Labels | None = None,
    suffix: str = ".jpg",
    categories: tuple[str, ...] = CATEGORIES,
) -> Path:
    """Write Main lists and images of ``train`` and ``val``, and images with XML annotations of ``xml``."""
    train, val, xml = TRAIN if train is None else train, VAL if val is None else val, xml or {}
    main, images, annotations = devkit / "ImageSets" / "Main", devkit / "JPEGImages", devkit / "Annotations"
    main.mkdir(parents=True)
    images.mkdir()
    for name, labels in (("train", train), ("val", val), ("trainval", {**train, **val})):
        (main / f"{name}.txt").write_text("".join(f"{image}\n" for image in labels))
        for category in categories:
            lines = [f"{image} {flags.get(category, -1):2d}\n" for image, flags in labels.items()]
            (main / f"{category}_{name}.txt").write_text("".join(lines))
    if segmentation is not None:
        (devkit / "ImageSets" / "Segmentation").mkdir()
        (devkit / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(segmentation) + "\n")
    for image, flags in xml.items():
        annotations.mkdir(exist_ok=True)
        objects = "".join(
            f"<object><name>{name}</name><truncated>1</truncated><difficult>{1 - flag}</difficult>"
            "<part><name>head</name></part></object>"
            for name, flag in flags.items()
        )
        (annotations / f"{image}.xml").write_text(f"<annotation><filename>{image}.jpg</filename>{objects}</annotation>")
    rng = np.random.default_rng(0)
    for image in {**train, **val, **xml}:
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(images / f"{image}{suffix}")
    return devkit


@pytest.fixture
def write_voc() -> Callable[..., Path]:
    return write_devkit


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_devkit(tmp_path / "VOC2012")


@pytest.fixture
def shared() -> Path:
    """The project's shared images and weights; the test is skipped where they are absent."""
    folder = os.environ.get("ANOMALIB_DEFEND_SHARED")
    if not folder or not (Path(folder) / "data" / "voc2012_animals.zip").is_file():
        pytest.skip("ANOMALIB_DEFEND_SHARED does not name a folder with the project's shared data")
    return Path(folder)
