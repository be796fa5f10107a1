"""The embedded example: the scenes, their VOC layout and the teacher that the package ships for them."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from anomalib_defend.example import __main__ as command
from anomalib_defend.example.encoder import MODEL_NAME, WEIGHTS
from anomalib_defend.example.pretrain import as_tensors, evaluate, initialise, logits
from anomalib_defend.example.scenes import CATEGORIES, Part, compose_scene, draw_classes, load_part, write_voc

PARTS: tuple[Part, ...] = ("pretrain", "pretrain_val", "train", "val")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("example"), num_train=30, num_test=20)


def read_flags(voc: Path, category: str, split: str) -> dict[str, int]:
    lines = (voc / "ImageSets" / "Main" / f"{category}_{split}.txt").read_text().splitlines()
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parts_share_no_digit_and_hold_all_of_them() -> None:
    parts = [set(load_part(part).indices.tolist()) for part in PARTS]
    assert all(not a & b for a, b in combinations(parts, 2))
    assert set().union(*parts) == set(range(1797))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_the_same_share_of_every_class(part: Part) -> None:
    counts = np.bincount(load_part(part).labels, minlength=10)
    assert counts.max() - counts.min() <= 0.1 * counts.mean() + 2


def test_boxes_hold_the_digits_apart() -> None:
    rng, digits = np.random.default_rng(0), load_part("train")
    for _ in range(20):
        classes = draw_classes(rng, 3, present=3)
        scene = compose_scene(digits, classes, rng)
        assert [item.label for item in scene.objects] == classes
        assert len(set(classes)) == 3
        inside = np.zeros((96, 96), dtype=int)
        for item in scene.objects:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= 96
            assert 0 <= top < bottom <= 96
            inside[top:bottom, left:right] += 1
        assert inside.max() == 1


def test_the_same_seed_gives_the_same_files(voc: Path, tmp_path: Path) -> None:
    again = write_voc(tmp_path / "again", num_train=30, num_test=20)
    other = write_voc(tmp_path / "other", num_train=30, num_test=20, seed=1)
    assert contents(again) == contents(voc)
    assert (other / "JPEGImages" / "val_000000.jpg").read_bytes() != (voc / "JPEGImages/val_000000.jpg").read_bytes()


def test_lists_images_and_annotations_agree(voc: Path) -> None:
    flags = {category: read_flags(voc, category, "trainval") for category in CATEGORIES}
    ids = set(flags["zero"])
    assert {path.stem for path in (voc / "JPEGImages").iterdir()} == ids
    assert {path.stem for path in (voc / "Annotations").iterdir()} == ids
    for image_id in ids:
        root = ET.parse(voc / "Annotations" / f"{image_id}.xml").getroot()  # noqa: S314 - written by this test
        with Image.open(voc / "JPEGImages" / root.findtext("filename", "")) as image:
            assert image.size == (96, 96)
            assert image.mode == "RGB"
        names = {node.findtext("name") for node in root.iter("object")}
        assert names == {category for category in CATEGORIES if flags[category][image_id] == 1}
        for box in root.iter("bndbox"):
            left, top, right, bottom = (int(box.findtext(tag, "")) for tag in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= left < right <= 96
            assert 1 <= top < bottom <= 96


def test_splits_are_as_documented(voc: Path) -> None:
    train, val = read_flags(voc, "three", "train"), read_flags(voc, "three", "val")
    assert not train.keys() & val.keys()
    assert list(train.values()).count(1) == 30
    assert list(train.values()).count(-1) == 3
    assert list(val.values()).count(1) == list(val.values()).count(-1) == 10
    assert read_flags(voc, "three", "trainval") == train | val


def test_writing_twice_keeps_the_scenes(voc: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in voc.rglob("*")}
    assert write_voc(voc.parent, num_train=30, num_test=20) == voc
    assert {path: path.stat().st_mtime_ns for path in voc.rglob("*")} == before


def test_other_scenes_are_neither_kept_nor_overwritten(voc: Path) -> None:
    with pytest.raises(FileExistsError, match="holds other data"):
        write_voc(voc.parent, num_train=30, num_test=20, seed=5)
    assert json.loads((voc / "scenes.json").read_text())["seed"] == 0


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_defend.example.scenes._annotation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_voc(tmp_path, num_train=4, num_test=4)
    assert not list(tmp_path.iterdir())


def test_an_unknown_digit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ten' is not a digit"):
        write_voc(tmp_path, normal="ten")


def test_command_says_where_and_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--root", str(tmp_path), "--category", "seven"])
    printed = capsys.readouterr().out
    assert "440 scenes (400 with 'seven')" in printed
    assert "200 scenes (100 with 'seven')" in printed
    assert f"--data.root {tmp_path / 'VOC2012'} --data.category seven" in printed


def test_teacher_is_created_offline_with_timm_options() -> None:
    code = (
        "import timm, anomalib_defend.example.encoder as vit\n"
        "options = dict(num_classes=0, img_size=96, dynamic_img_size=True, drop_path_rate=0.1)\n"
        "model = timm.create_model(vit.MODEL_NAME, pretrained=True, **options)\n"
        "assert {p.dtype for p in model.parameters()} == {vit_dtype}\n"
        "assert model.blocks[-1].drop_path1.drop_prob > 0\n"
    ).replace("vit_dtype", "__import__('torch').float32")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_teacher_loads_its_weights_and_its_own_statistics() -> None:
    assert WEIGHTS.stat().st_size < 3e6
    model = timm.create_model(MODEL_NAME, pretrained=True)
    other = timm.create_model(MODEL_NAME, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 96, 96)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)


def test_teacher_takes_other_image_sizes() -> None:
    model = timm.create_model(MODEL_NAME, pretrained=True, num_classes=0, img_size=128)
    assert model.forward_features(torch.zeros(1, 3, 128, 128)).shape == (1, 1 + 16 * 16, 96)


def test_patch_labels_name_the_digit_under_the_patch() -> None:
    rng = np.random.default_rng(0)
    scene = compose_scene(load_part("train"), [3, 8], rng)
    images, patches, present = as_tensors([scene])
    assert images.shape == (1, 3, 96, 96)
    assert present.nonzero()[:, 1].tolist() == [3, 8]
    for item in scene.objects:
        left, top, right, bottom = item.box
        assert patches.view(12, 12)[(top + bottom) // 16, (left + right) // 16] == 1 + item.label


def test_logits_are_those_of_timm() -> None:
    model = initialise(timm.create_model(MODEL_NAME)).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, images)[1], model(images))


def test_teacher_recognises_digits_that_it_has_not_seen() -> None:
    shares = evaluate(timm.create_model(MODEL_NAME, pretrained=True).eval(), count=100)
    assert shares["patch"] > 0.85
    assert shares["object"] > 0.75
    assert shares["image"] > 0.9
