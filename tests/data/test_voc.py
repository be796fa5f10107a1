"""Pascal VOC: its lists, its annotations, its places on disk, its download."""

import hashlib
import logging
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.datasets.voc import DATASET_YEAR_DICT

from anomalib_defend.data import SemanticVOC

WriteVoc = Callable[..., Path]
Serve = Callable[[Path], tuple[str, type]]


def build(root: Path, category: list[str] | str = "dog", **kwargs: object) -> SemanticVOC:
    datamodule = SemanticVOC(root=root, category=category, num_workers=0, **kwargs)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def ids(*datasets: object, label: int | None = None) -> set[str]:
    return {
        Path(row.image_path).stem
        for dataset in datasets
        for row in dataset.samples.itertuples()  # type: ignore[attr-defined]
        if label is None or row.label_index == label
    }


def test_main_lists(voc: Path) -> None:
    datamodule = build(voc)
    assert ids(datamodule.train_data, datamodule.val_data) == {f"t0{i}" for i in range(10)}  # t09: difficult only
    assert ids(datamodule.test_data, label=0) == {"v00", "v01", "v02"}
    assert ids(datamodule.test_data, label=1) == {"v03", "v04", "v05", "v06", "v07"}


def test_leave_one_out(voc: Path) -> None:
    datamodule = build(voc, "person", setting="leave_one_out")
    assert datamodule.num_normal_categories == 2
    assert ids(datamodule.train_data, datamodule.val_data) == {f"t{i:02d}" for i in range(16)}
    assert ids(datamodule.test_data, label=1) == {"v05", "v06", "v07"}


def test_several_categories(voc: Path) -> None:
    datamodule = build(voc, ["dog", "cat"])
    assert datamodule.category == "cat_dog"
    assert ids(datamodule.train_data, datamodule.val_data) == {f"t{i:02d}" for i in range(16)}
    assert ids(datamodule.test_data, label=1) == {"v05", "v06", "v07"}


def test_segmentation_protocol(tmp_path: Path, write_voc: WriteVoc, caplog: pytest.LogCaptureFixture) -> None:
    xml = {"s00": {"dog": 0, "person": 1}, "s01": {"cat": 1}, "t01": {"person": 1}}  # t01: Main says dog, Main wins
    write_voc(tmp_path / "VOC2012", segmentation=["t00", "t01", "t12", "v03", "s00", "s01", "s00"], xml=xml)
    caplog.set_level(logging.INFO)
    datamodule = build(tmp_path)
    assert ids(datamodule.test_data, label=0) == {"t00", "t01", "s00"}
    assert ids(datamodule.test_data, label=1) == {"t12", "v03", "s01"}
    train = {f"t0{i}" for i in range(2, 10)} | {"v00", "v01", "v02"}
    assert ids(datamodule.train_data, datamodule.val_data) == train
    assert "Segmentation/val.txt" in caplog.text


@pytest.mark.parametrize("place", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_root_may_be_any_of_three_folders(
    tmp_path: Path,
    write_voc: WriteVoc,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    devkit = write_voc(tmp_path / "root" / place)
    caplog.set_level(logging.INFO)
    assert len(build(tmp_path / "root").test_data) == 8
    assert f"Pascal VOC from {devkit};" in caplog.text


def test_other_categories_and_png_files(tmp_path: Path, write_voc: WriteVoc) -> None:
    labels = {f"a.{i}": {"train": 1} if i % 2 else {"red_val": 1} for i in range(6)}
    test = {f"b.{i}": flags for i, flags in enumerate(labels.values())}
    write_voc(tmp_path / "kit", train=labels, val=test, suffix=".png", categories=("train", "red_val"))
    datamodule = build(tmp_path / "kit", "train")  # a VOC category; its lists are train_train.txt, train_val.txt ...
    assert ids(datamodule.train_data, datamodule.val_data) == {"a.1", "a.3", "a.5"}
    item = datamodule.train_data[0]
    assert item.image.shape == (3, 32, 40)
    assert item.image_path.endswith(".png")
    assert item.gt_label == 0


def test_two_constructions_give_the_same_splits(voc: Path) -> None:
    first, second = build(voc), build(voc)
    for name in ("train_data", "val_data", "test_data"):
        assert getattr(first, name).samples.equals(getattr(second, name).samples)


def test_nothing_found(tmp_path: Path) -> None:
    message = r"No Pascal VOC data.*no such folder.*ImageSets/Main/<category>.*JPEGImages.*download=True.*https?://"
    for method in ("prepare_data", "setup"):
        with pytest.raises(FileNotFoundError, match=message):
            getattr(SemanticVOC(root=tmp_path / "nowhere", category="dog"), method)()
    with pytest.raises(FileNotFoundError, match="it holds no ImageSets/Main"):
        build(tmp_path)


def test_lists_that_are_missing_or_malformed(voc: Path) -> None:
    main = voc / "ImageSets" / "Main"
    (main / "cat_val.txt").write_text("v00 -1\n\nv01 2\n")
    with pytest.raises(ValueError, match=r"cat_val\.txt, line 3: expected '<image id> <1, 0 or -1>', got 'v01 2'"):
        build(voc)
    for path in main.glob("*_val.txt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"No test split.*Segmentation/val\.txt"):
        build(voc)
    for path in main.glob("*_*.txt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Main holds no <category>_train\.txt"):
        build(voc)


def test_missing_images(voc: Path) -> None:
    (voc / "JPEGImages" / "v03.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 18 images are missing from {voc / 'JPEGImages'}: v03.jpg"):
        build(voc)


def test_annotation_files_that_are_missing_or_bad(tmp_path: Path, write_voc: WriteVoc) -> None:
    devkit = write_voc(tmp_path / "VOC2012", segmentation=["v00", "s00", "s01"])
    with pytest.raises(FileNotFoundError, match=r"2 test image\(s\).*Annotations/s00\.xml"):
        build(tmp_path)
    (devkit / "Annotations").mkdir()
    (devkit / "Annotations" / "s00.xml").write_text("<annotation><object>")
    (devkit / "Annotations" / "s01.xml").write_text("<annotation/>")
    with pytest.raises(ValueError, match=r"s00\.xml is not an XML annotation file .*line 1, column 20"):
        build(tmp_path)
    (devkit / "Annotations" / "s00.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    with pytest.raises(ValueError, match=r"s00\.xml.*a DOCTYPE is not allowed"):
        build(tmp_path)


def test_a_stock_model_trains_and_tests_on_it(voc: Path, tmp_path: Path) -> None:
    from anomalib.engine import Engine
    from anomalib.models import Padim

    datamodule = build(voc, train_batch_size=4, eval_batch_size=4)
    model = Padim(backbone="resnet18", pre_trained=False, layers=["layer1"], n_features=8, visualizer=False)
    engine = Engine(default_root_dir=tmp_path / "results", accelerator="cpu", logger=False, barebones=False)
    engine.fit(model, datamodule=datamodule)
    (metrics,) = engine.test(model, datamodule=datamodule)
    assert 0 <= metrics["image_AUROC"] <= 1
    assert (tmp_path / "results" / "Padim" / "SemanticVOC" / "dog").is_dir()


@pytest.fixture
def archive(tmp_path: Path, write_voc: WriteVoc, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the place of the official one."""
    write_voc(tmp_path / "made" / "VOCdevkit" / "VOC2012")
    path = tmp_path / "server" / DATASET_YEAR_DICT["2012"]["filename"]
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "made" / "VOCdevkit", "VOCdevkit")
    url, _ = serve(path.parent)
    served = {"url": f"{url}/{path.name}", "md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}
    monkeypatch.setitem(DATASET_YEAR_DICT, "2012", {**DATASET_YEAR_DICT["2012"], **served})
    return path


def test_download_once(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "root"
    assert len(build(root, download=True).test_data) == 8
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]
    archive.unlink()
    assert len(build(root, download=True).test_data) == 8


@pytest.fixture(scope="session")
def voc_animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = os.environ.get("ANOMALIB_DEFEND_SHARED")
    if not shared:
        pytest.skip("ANOMALIB_DEFEND_SHARED is not set")
    pack = Path(shared) / "data" / "voc2012_animals.zip"
    if not pack.is_file():
        pytest.skip(f"{pack} does not exist")
    folder = tmp_path_factory.mktemp("voc2012_animals")
    shutil.unpack_archive(pack, folder)
    return folder


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("category", "train", "test_normal"),
    [("dog", 1180, 128), ("cat", 1001, 119), ("horse", 444, 79), ("sheep", 300, 57), ("cow", 263, 71)],
)
def test_counts_of_the_real_images(voc_animals: Path, category: str, train: int, test_normal: int) -> None:
    datamodule = build(voc_animals, category)
    assert len(datamodule.train_data) + len(datamodule.val_data) == train
    assert len(datamodule.val_data) == round(train / 10)
    assert len(datamodule.test_data) == 445
    assert len(ids(datamodule.test_data, label=0)) == test_normal
    assert not ids(datamodule.train_data) & ids(datamodule.val_data)
    assert not ids(datamodule.train_data, datamodule.val_data) & ids(datamodule.test_data)
