"""What holds for every datamodule, setting and kind of novel image."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomalib_defend.data
import miniatures
from anomalib_defend.data import SemanticFolder

CATEGORY = {
    "SemanticVOC": "dog",
    "SemanticCOCO": "dog",
    "SemanticCIFAR10": ["cat", "dog"],
    "SemanticCIFAR100": "people",
    "SemanticMNIST": 8,
    "SemanticFashionMNIST": "Sneaker",
    "SemanticFolder": "dog",
}
PARTS = ("train_data", "val_data", "test_data")

everywhere = pytest.mark.parametrize("name", miniatures.WRITERS)


def prepared(name, root, **options):
    options = {"category": CATEGORY[name], "num_workers": 0, "seed": 0, **options}
    data = getattr(anomalib_defend.data, name)(root, **options)
    data.prepare_data()
    data.setup()
    return data


def images(data, part):
    return getattr(data, part).samples.image_path.tolist()


@everywhere
@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
def test_splits_are_deterministic_disjoint_and_of_the_right_labels(name, setting, write):
    root = write(name)
    data, again = (prepared(name, root, setting=setting) for _ in range(2))
    parts = {part: images(data, part) for part in PARTS}
    for part, paths in parts.items():
        assert paths == images(again, part)
        assert len(set(paths)) == len(paths) > 0, part
        assert all(Path(path).is_file() for path in paths)
    assert not set(parts["train_data"]) & set(parts["val_data"])
    assert not set(parts["test_data"]) & {*parts["train_data"], *parts["val_data"]}
    assert not data.train_data.has_anomalous
    assert not data.val_data.has_anomalous
    assert data.test_data.has_anomalous


@everywhere
def test_novel_images_of_another_data_set(name, write, tmp_path):
    donor = SemanticFolder(miniatures.write_folder(tmp_path / "fakes"), category="fox", test_split_ratio=1)
    data = prepared(name, write(name), setting="uni_class", novel_dataset=donor)
    samples = data.test_data.samples
    from_donor = samples.image_path.str.startswith(str(tmp_path / "fakes"))
    assert from_donor.sum() == 10
    assert (samples.label_index[from_donor] == 1).all()
    assert (samples.label_index[~from_donor] == 0).all()
    assert (~from_donor).any()


@everywhere
def test_an_unknown_category_is_refused_with_the_list(name, write):
    with pytest.raises(ValueError, match=r"unknown 'zebra'.* Available are: \S+"):
        prepared(name, write(name), category="zebra")


@pytest.fixture
def distinct(write):
    """Write a data set of which no two images have the same bytes, and return its root."""

    def write_data(name):
        root = write(name)
        data = prepared(name, root)
        for number, path in enumerate(path for part in PARTS for path in images(data, part)):
            pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return root

    return write_data


def leaking(name, root):
    """A training image and a test image of the data set, each with a normal category."""
    data = prepared(name, root)
    test = data.test_data.samples
    return data.train_data.samples.image_path[0], test.image_path[test.label_index == 0].iloc[0]


@everywhere
@pytest.mark.parametrize("kind", ["link", "hard link", "link to another folder's name"])
def test_a_test_image_that_is_a_training_image_never_leaks(name, kind, distinct, tmp_path):
    root = distinct(name)
    train, test = map(Path, leaking(name, root))
    target = train
    if kind == "link to another folder's name":
        (tmp_path / "other name").symlink_to(train.parent)
        target = tmp_path / "other name" / train.name
    test.unlink()
    (os.link if kind == "hard link" else os.symlink)(target, test)
    if name != "SemanticFolder":  # which splits files, not names
        with pytest.raises(ValueError, match=rf"1 image\(s\) are for training and for test .*would leak.*{test.name}"):
            prepared(name, root)
        return
    data = prepared(name, root)
    files = [{os.stat(path).st_ino for path in images(data, part)} for part in PARTS]  # noqa: PTH116
    assert len(set.union(*files)) == sum(map(len, files)) == 13  # 8 dogs, 6 for the test, one of them twice


@everywhere
def test_copies_are_counted_or_refused(name, distinct, caplog):
    root = distinct(name)
    caplog.clear()
    prepared(name, root, on_duplicates="raise")
    assert "same bytes" not in caplog.text
    train, test = leaking(name, root)
    shutil.copy(train, test)
    counted = r"2 of \d+ images have the same bytes as another one"
    leaking_ones = rf"1 test image\(s\) are copies of training images, so the test leaks: {test} = {train}"
    with pytest.raises(ValueError, match=rf"{counted}.*{leaking_ones}.*on_duplicates='warn'"):
        prepared(name, root, on_duplicates="raise")
    data = prepared(name, root)
    assert test in images(data, "test_data")
    assert "1 test image(s) are copies of training images, so the test leaks" in caplog.text
    with pytest.raises(ValueError, match="on_duplicates must be one of warn, raise, got 'skip'"):
        prepared(name, root, on_duplicates="skip")


@everywhere
def test_hidden_twins_are_no_data(name, write):
    """What a Mac, Windows and a Synology server leave beside every file."""
    root = write(name)
    data = prepared(name, root)
    expected = {part: images(data, part) for part in PARTS}
    for path in [path for path in root.rglob("*") if path.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        for folder in ("@eaDir", "__MACOSX", ".thumbnails"):
            (path.parent / folder).mkdir(exist_ok=True)
            shutil.copy(path, path.parent / folder)
        for file in ("Thumbs.db", "desktop.ini", ".DS_Store"):
            (path.parent / file).write_bytes(b"\0")
    again = prepared(name, root)
    assert {part: images(again, part) for part in PARTS} == expected


@pytest.mark.parametrize("name", [name for name in miniatures.WRITERS if name != "SemanticVOC"])
def test_names_that_are_not_utf8(name, write):
    root = write(name)
    prepared(name, root)
    renamed = {}
    for number, path in enumerate(sorted(path for path in root.rglob("*") if path.suffix in {".jpg", ".png"})):
        renamed[path.name] = os.fsdecode(b"St\xfcck%d%b" % (number, path.suffix.encode()))
        path.rename(path.with_name(renamed[path.name]))
    for path in root.rglob("*.json"):
        content = json.loads(path.read_text())
        for image in content["images"]:
            image["file_name"] = renamed[image["file_name"]]
        path.write_text(json.dumps(content))  # as Python writes such names
    data = prepared(name, root)
    assert all("St\udcfcck" in path for part in PARTS for path in images(data, part))
    assert len(next(iter(data.test_dataloader())).image) == min(32, len(data.test_data))


def test_the_lists_of_voc_are_utf8(write):
    """A name that is not cannot be in them; what is not listed is not used, whatever its name."""
    root = write("SemanticVOC")
    train = images(prepared("SemanticVOC", root), "train_data")
    path = Path(train[0])
    path.rename(path.with_name(os.fsdecode(b"St\xfcck.jpg")))
    with pytest.raises(FileNotFoundError, match=rf"1 of \d+ images are missing from .*: {path.name}"):
        prepared("SemanticVOC", root)
    for file in (root / "ImageSets" / "Main").glob("*_train.txt"):
        file.write_bytes(file.read_bytes().replace(path.stem.encode(), b"St\xfcck"))
    with pytest.raises(ValueError, match=r"_train\.txt, line \d+, byte \d+: the byte 0xfc is not UTF-8"):
        prepared("SemanticVOC", root)
    for file in (root / "ImageSets" / "Main").glob("*_train.txt"):
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(line for line in lines if b"\xfc" not in line))
    assert len(images(prepared("SemanticVOC", root), "train_data")) == len(train) - 1


@everywhere
def test_a_root_whose_name_is_not_utf8(name, write, capsys):
    root = write(name)
    root = root.rename(root.with_name(os.fsdecode(b"d\xe4ten")))
    data = prepared(name, root)
    assert len(next(iter(data.test_dataloader())).image) == min(32, len(data.test_data))
    assert "Logging error" not in capsys.readouterr().err
