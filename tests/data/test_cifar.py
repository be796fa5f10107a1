"""CIFAR-10 and CIFAR-100: official files, their conversion, class folders, both label sets, near-distribution tests."""

import logging
import os
import pickle
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from anomalib_defend.data import SemanticCIFAR10, SemanticCIFAR100, SemanticFolder, class_folders
from anomalib_defend.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from miniatures import (
    CIFAR10_NAMES,
    CIFAR100_COARSE,
    CIFAR100_COARSE_OF_FINE,
    CIFAR100_FINE,
    trust,
    write_cifar10,
    write_cifar100,
    write_folder,
)


def build(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def cifar10(root, category="cat", **kwargs):
    return SemanticCIFAR10(root, category, num_workers=0, **kwargs)


def cifar100(root, category="people", **kwargs):
    return SemanticCIFAR100(root, category, num_workers=0, **kwargs)


def classes(*datasets, label=None):
    """How many images each class folder has in the datasets."""
    rows = [row for dataset in datasets for row in dataset.samples.itertuples()]
    return Counter(Path(row.image_path).parent.name for row in rows if label is None or row.label_index == label)


def paths(*datasets):
    return [path for dataset in datasets for path in dataset.samples.image_path]


def contents(root):
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def official10(tmp_path, monkeypatch):
    return trust(monkeypatch, write_cifar10(tmp_path / "data"))


@pytest.fixture
def official100(tmp_path, monkeypatch):
    return trust(monkeypatch, write_cifar100(tmp_path / "data"))


@pytest.fixture(scope="module")
def folders10(tmp_path_factory):
    """Miniature CIFAR-10 as it is after ``prepare_data``."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = trust(monkeypatch, write_cifar10(tmp_path_factory.mktemp("cifar10")))
        cifar10(root).prepare_data()
    shutil.rmtree(root / "cifar-10-batches-py")
    return root


@pytest.fixture(scope="module")
def folders100(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = trust(monkeypatch, write_cifar100(tmp_path_factory.mktemp("cifar100")))
        cifar100(root).prepare_data()
    shutil.rmtree(root / "cifar-100-python")
    return root


@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
@pytest.mark.parametrize("category", [*CIFAR10_NAMES, ["cat", "dog"]])
def test_every_class_of_cifar10(folders10, category, setting):
    chosen = {category} if isinstance(category, str) else set(category)
    normal = chosen if setting == "uni_class" else set(CIFAR10_NAMES) - chosen
    datamodule = build(cifar10(folders10, category, setting=setting))
    assert classes(datamodule.train_data, datamodule.val_data) == dict.fromkeys(normal, 5)
    assert classes(datamodule.test_data) == dict.fromkeys(CIFAR10_NAMES, 2)
    assert classes(datamodule.test_data, label=0) == dict.fromkeys(normal, 2)
    used = paths(datamodule.train_data, datamodule.val_data, datamodule.test_data)
    assert len(set(used)) == len(used)
    again = build(cifar10(folders10, category, setting=setting))
    assert paths(again.train_data) == paths(datamodule.train_data)
    assert paths(again.val_data) == paths(datamodule.val_data)


def test_split_01234_by_number_and_by_name(folders10):
    numbered, named = (build(cifar10(folders10, category)) for category in ([0, 1, 2, 3, 4], CIFAR10_NAMES[:5]))
    assert numbered.categories == named.categories == CIFAR10_NAMES[:5]
    for split in ("train_data", "val_data", "test_data"):
        assert getattr(numbered, split).samples.equals(getattr(named, split).samples)
    with pytest.raises(ValueError, match=r"unknown '10'\. Available are: 0 airplane, 1 automobile, .* 9 truck"):
        build(cifar10(folders10, 10))


@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
@pytest.mark.parametrize("number", range(20))
def test_every_coarse_category(folders100, number, setting):
    """Against the numbers of the official files."""
    chosen = {name for name, coarse in zip(CIFAR100_FINE, CIFAR100_COARSE_OF_FINE, strict=True) if coarse == number}
    normal = chosen if setting == "uni_class" else set(CIFAR100_FINE) - chosen
    datamodule = build(cifar100(folders100, number, setting=setting))
    assert datamodule.categories == [CIFAR100_COARSE[number]]
    assert datamodule.num_normal_categories == (1 if setting == "uni_class" else 19)
    assert classes(datamodule.train_data, datamodule.val_data) == dict.fromkeys(normal, 2)
    assert classes(datamodule.test_data) == dict.fromkeys(CIFAR100_FINE, 1)
    assert classes(datamodule.test_data, label=0) == dict.fromkeys(normal, 1)


@pytest.mark.parametrize("number", [0, 42, 99])
def test_fine_classes(folders100, number):
    datamodule = build(cifar100(folders100, number, labels="fine"))
    assert datamodule.categories == [CIFAR100_FINE[number]]
    assert classes(datamodule.train_data, datamodule.val_data) == {CIFAR100_FINE[number]: 2}
    assert classes(datamodule.test_data, label=0) == {CIFAR100_FINE[number]: 1}
    assert build(cifar100(folders100, number, setting="leave_one_out", labels="fine")).num_normal_categories == 99


def test_the_tables_are_the_official_ones(tmp_path):
    assert list(CIFAR10_CLASSES) == CIFAR10_NAMES
    assert list(CIFAR100_CLASSES) == CIFAR100_COARSE
    file = write_cifar100(tmp_path) / "cifar-100-python" / "train"
    entry = pickle.loads(file.read_bytes())  # noqa: S301 - written above
    for fine, coarse in zip(entry["fine_labels"], entry["coarse_labels"], strict=True):
        assert CIFAR100_FINE[fine] in CIFAR100_CLASSES[CIFAR100_COARSE[coarse]]
    assert sorted(name for names in CIFAR100_CLASSES.values() for name in names) == CIFAR100_FINE


def test_the_pixels_are_the_official_ones(official10, folders10):
    expected = CIFAR10(official10, train=False)
    for number, (image, label) in enumerate(expected):
        path = folders10 / "cifar10_png" / "test" / CIFAR10_NAMES[label] / f"{number:05d}.png"
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))
    train = sorted(path.name for path in (folders10 / "cifar10_png" / "train").glob("*/*.png"))
    assert train == [f"{number:05d}.png" for number in range(50)]  # five batches, numbered through


def test_converted_once(official100):
    build(cifar100(official100))
    assert contents(official100) == ["cifar-100-python", "cifar100_png"]
    before = {path: path.stat().st_mtime_ns for path in official100.rglob("*")}
    build(cifar100(official100, "bed", labels="fine"))
    assert {path: path.stat().st_mtime_ns for path in official100.rglob("*")} == before


def test_setup_without_prepare_data(official10, folders10):
    with pytest.raises(FileNotFoundError, match=r"No CIFAR-10 in root.*prepare_data\(\), which the trainer calls"):
        cifar10(official10).setup()
    datamodule = cifar10(folders10)
    datamodule.setup()
    assert len(datamodule.test_data) == 20


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_nothing(official10, monkeypatch, error):
    save, calls = Image.Image.save, []

    def fail_at_the_sixtieth(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 60:
            raise error
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail_at_the_sixtieth)
        with pytest.raises(type(error)):
            cifar10(official10).prepare_data()
    assert contents(official10) == ["cifar-10-batches-py"]
    assert len(build(cifar10(official10)).test_data) == 20


def test_what_a_killed_conversion_leaves_is_not_taken(official10):
    left = official10 / ".incomplete-abc" / "cifar10_png"
    for split in ("train", "test"):
        (left / split / "cat").mkdir(parents=True)
    assert len(build(cifar10(official10)).test_data) == 20
    assert (official10 / "cifar10_png" / "train" / "dog").is_dir()


def test_a_part_of_the_class_folders_is_not_overwritten(official10):
    (official10 / "cifar10_png" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"cifar10_png is not complete: .* Remove it to have it written anew"):
        cifar10(official10).prepare_data()
    assert contents(official10 / "cifar10_png") == ["train"]


def test_another_node_that_was_faster(official10, folders10, monkeypatch):
    write = class_folders.write_class_folders

    def late(folder, splits):
        shutil.copytree(folders10 / "cifar10_png", folder)
        write(folder, splits)

    monkeypatch.setattr(class_folders, "write_class_folders", late)
    assert len(build(cifar10(official10)).test_data) == 20
    assert contents(official10) == ["cifar-10-batches-py", "cifar10_png"]


def test_a_folder_that_cannot_be_written(official10, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(official10))

    monkeypatch.setattr(class_folders, "write_class_folders", refuse)
    with pytest.raises(PermissionError, match="Copy or link its files into a folder of your own"):
        cifar10(official10).prepare_data()


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "renamed"])
def test_root_may_be_the_batches_folder(official10, name):
    root = (official10 / "cifar-10-batches-py").rename(official10 / name)
    assert len(build(cifar10(root)).test_data) == 20


def test_cifar100_in_its_own_folder(official100):
    """Its files are named train and test, like the class folders."""
    assert len(build(cifar100(official100 / "cifar-100-python")).test_data) == 100


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_class_folders_are_taken_as_they_are(tmp_path, suffix):
    for split in ("train", "test"):
        write_folder(tmp_path / "cifar10" / split, CIFAR10_NAMES, number=3)
        for path in (tmp_path / "cifar10" / split).rglob("*.png"):
            Image.open(path).save(path.with_suffix(suffix))
            if suffix != ".png":
                path.unlink()
    assert len(build(cifar10(tmp_path / "cifar10")).test_data) == 30
    assert contents(tmp_path / "cifar10") == ["test", "train"]


def test_coarse_class_folders(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / split, CIFAR100_COARSE, number=2)
    assert classes(build(cifar100(tmp_path, "people")).test_data, label=0) == {"people": 2}
    with pytest.raises(
        ValueError, match=r"coarse categories of CIFAR-100, which cannot be divided: pass labels='coarse'"
    ):
        build(cifar100(tmp_path, "baby", labels="fine"))
    with pytest.raises(ValueError, match="labels must be one of coarse, fine, got 'Fine'"):
        cifar100(tmp_path, "baby", labels="Fine")


def test_folders_of_another_data_set(tmp_path, caplog):
    for split in ("train", "test"):
        write_folder(tmp_path / split, ["cat", "dog"], number=2)
    assert len(build(cifar10(tmp_path)).test_data) == 4
    assert f"{tmp_path / 'test'} of CIFAR-10 has no images of: airplane, automobile, bird" in caplog.text
    with pytest.raises(
        ValueError, match=r"train is not CIFAR-100: cat, dog is none of its classes.*use SemanticFolder"
    ):
        build(cifar100(tmp_path))


@pytest.mark.parametrize("make", [cifar10, cifar100])
def test_nothing_there(tmp_path, make):
    expected = r"No CIFAR-100?.*Put there cifar-100?-python\.tar\.gz from https://\S+ or the folder.*download=True"
    with pytest.raises(FileNotFoundError, match=expected):
        make(tmp_path).prepare_data()
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        make(tmp_path / "nowhere").prepare_data()


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_changed_file_is_named_and_never_unpickled(official10, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = official10 / "cifar-10-batches-py" / name
    path.write_bytes(pickle.dumps(Evil()))
    for download in (False, True):
        with pytest.raises(
            RuntimeError, match=rf"{path} is not the file of CIFAR-10 \(its MD5 is not [0-9a-f]{{32}}\)"
        ):
            cifar10(official10, download=download).prepare_data()
    path.unlink()
    with pytest.raises(RuntimeError, match=rf"{path} is not the file of CIFAR-10 \(there is no such file\)"):
        cifar10(official10).prepare_data()
    assert not (tmp_path / "evil").exists()
    assert contents(official10) == ["cifar-10-batches-py"]


@pytest.fixture
def archive(official10, tmp_path, monkeypatch):
    """A stand-in for the official archive."""
    path = tmp_path / "served" / CIFAR10.filename
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(official10 / "cifar-10-batches-py", "cifar-10-batches-py")
    trust(monkeypatch, path.parent)
    return path


def test_an_archive_in_root(archive, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(archive, root)
    assert len(build(cifar10(root)).test_data) == 20
    assert contents(root) == ["cifar-10-batches-py", CIFAR10.filename, "cifar10_png"]


def test_a_wrong_archive_in_root(archive, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / archive.name).write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(
        RuntimeError, match=rf"{root / archive.name} is not https://.*its MD5 is not .*Remove or replace"
    ):
        cifar10(root).prepare_data()
    assert contents(root) == [archive.name]


def test_download(archive, tmp_path, monkeypatch, serve):
    url, handler = serve(archive.parent)
    monkeypatch.setattr(CIFAR10, "url", f"{url}/{archive.name}")
    root = tmp_path / "root"
    for _ in range(2):
        assert len(build(cifar10(root, download=True)).test_data) == 20
    assert len(handler.requests) == 1
    assert contents(root) == ["cifar-10-batches-py", "cifar10_png"]


def test_near_distribution(folders10, folders100):
    """All of CIFAR-10 is normal, one class of CIFAR-100 is novel."""
    near = SemanticCIFAR100(folders100, "bed", labels="fine")
    datamodule = build(cifar10(folders10, list(range(10)), novel_dataset=near))
    assert classes(datamodule.train_data, datamodule.val_data) == dict.fromkeys(CIFAR10_NAMES, 5)
    assert classes(datamodule.test_data, label=0) == dict.fromkeys(CIFAR10_NAMES, 2)
    assert classes(datamodule.test_data, label=1) == {"bed": 1}


def test_novel_dataset_is_prepared_too(folders10, official100):
    near = SemanticCIFAR100(official100, "bed", labels="fine")
    assert len(build(cifar10(folders10, "cat", novel_dataset=near)).test_data) == 3


def test_fakes(folders10, tmp_path):
    fakes = SemanticFolder(write_folder(tmp_path, ["fake"]), "fake", test_split_ratio=1.0)
    datamodule = build(cifar10(folders10, list(range(10)), novel_dataset=fakes))
    assert classes(datamodule.test_data, label=1) == {"fake": 10}
    assert len(datamodule.test_data) == 30


def test_subsampling(folders10):
    datamodule = build(cifar10(folders10, [0, 1], max_train_images=6, max_test_images=5))
    assert len(datamodule.train_data) + len(datamodule.val_data) == 6
    assert sum(classes(datamodule.test_data, label=0).values()) == 1
    assert len(datamodule.test_data) == 5


@pytest.fixture(scope="session")
def jpeg_cifar10(tmp_path_factory):
    shared = os.environ.get("ANOMALIB_DEFEND_SHARED")
    pack = Path(shared or ".") / "data" / "cifar10.zip"
    if not shared or not pack.is_file():
        pytest.skip("ANOMALIB_DEFEND_SHARED does not name a folder with data/cifar10.zip")
    folder = tmp_path_factory.mktemp("cifar10_jpeg")
    shutil.unpack_archive(pack, folder)
    return folder / "cifar10"


@pytest.mark.slow
@pytest.mark.shared_data
def test_counts_of_the_real_images(jpeg_cifar10, caplog):
    caplog.set_level(logging.INFO)
    datamodule = build(cifar10(jpeg_cifar10, [0, 1, 2, 3, 4]))
    assert classes(datamodule.train_data, datamodule.val_data) == dict.fromkeys(CIFAR10_NAMES[:5], 1000)
    assert classes(datamodule.test_data) == dict.fromkeys(CIFAR10_NAMES, 1000)
    assert "train 4500 normal / 0 novel, val 500 normal / 0 novel, test 5000 normal / 5000 novel" in caplog.text
