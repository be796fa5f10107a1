"""MNIST and Fashion-MNIST: official files in all their forms, their conversion, grey images, the real clothing."""

import gzip
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import MNIST, FashionMNIST

from anomalib_defend.data import SemanticFashionMNIST, SemanticFolder, SemanticMNIST
from miniatures import md5_of, trust, write_fashion_mnist, write_folder, write_mnist

DIGITS = [str(digit) for digit in range(10)]
CLOTHES = ["T-shirt_top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IMAGES = "train-images-idx3-ubyte"


def build(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def mnist(root, category=8, **kwargs):
    return SemanticMNIST(root, category, num_workers=0, **kwargs)


def fashion(root, category="Bag", **kwargs):
    return SemanticFashionMNIST(root, category, num_workers=0, **kwargs)


def classes(*datasets, label=None):
    """How many images each class folder has in the datasets."""
    rows = [row for dataset in datasets for row in dataset.samples.itertuples()]
    return Counter(Path(row.image_path).parent.name for row in rows if label is None or row.label_index == label)


def paths(*datasets):
    return [path for dataset in datasets for path in dataset.samples.image_path]


def contents(root):
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Both data sets' files below one folder, as torchvision would put them."""
    write_mnist(tmp_path / "data")
    return trust(monkeypatch, write_fashion_mnist(tmp_path / "data"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both data sets as they are after ``prepare_data``."""
    root = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as monkeypatch:
        write_mnist(root)
        trust(monkeypatch, write_fashion_mnist(root))
        mnist(root).prepare_data()
        fashion(root).prepare_data()
    return root


@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize(("make", "names"), [(mnist, DIGITS), (fashion, CLOTHES)])
def test_every_class(folders, make, names, number, setting):
    normal = {names[number]} if setting == "uni_class" else set(names) - {names[number]}
    datamodule = build(make(folders, number, setting=setting))
    assert datamodule.categories == [names[number]]
    assert classes(datamodule.train_data, datamodule.val_data) == dict.fromkeys(normal, 4)
    assert classes(datamodule.test_data) == dict.fromkeys(names, 2)
    assert classes(datamodule.test_data, label=0) == dict.fromkeys(normal, 2)
    used = paths(datamodule.train_data, datamodule.val_data, datamodule.test_data)
    assert len(set(used)) == len(used)
    named = build(make(folders, names[number], setting=setting))
    for split in ("train_data", "val_data", "test_data"):
        assert getattr(named, split).samples.image_path.tolist() == paths(getattr(datamodule, split))


def test_names_are_those_of_torchvision():
    assert [name.replace("/", "_") for name in FashionMNIST.classes] == CLOTHES


def test_an_unknown_category(folders):
    message = r"unknown 'T-shirt/top'\. Did you mean 'T-shirt_top'.* Available are: 0 T-shirt_top, 1 .*9 Ankle boot"
    with pytest.raises(ValueError, match=message):
        build(fashion(folders, "T-shirt/top"))
    with pytest.raises(ValueError, match=r"unknown '10'\..* Available are: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\."):
        build(mnist(folders, 10))


@pytest.mark.parametrize(("reader", "name"), [(MNIST, "mnist_png"), (FashionMNIST, "fashion_mnist_png")])
def test_the_pixels_are_the_official_ones(folders, reader, name):
    names = {"mnist_png": DIGITS, "fashion_mnist_png": CLOTHES}[name]
    for split in ("train", "test"):
        for number, (image, label) in enumerate(reader(folders, train=split == "train")):
            path = folders / name / split / names[label] / f"{number:05d}.png"
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))


def test_grey_images_have_three_equal_channels(folders):
    datamodule = build(mnist(folders))
    image = datamodule.train_data[0].image
    assert image.shape == (3, 28, 28)
    assert (image == image[:1]).all()
    assert image[0, 0, 0] * 255 == 8  # the miniature's first pixel is the digit


def test_converted_once(official):
    build(mnist(official))
    build(fashion(official))
    assert contents(official) == ["FashionMNIST", "MNIST", "fashion_mnist_png", "mnist_png"]
    before = {path: path.stat().st_mtime_ns for path in official.rglob("*")}
    build(mnist(official, 3))
    build(fashion(official, 3))
    assert {path: path.stat().st_mtime_ns for path in official.rglob("*")} == before


def test_setup_without_prepare_data(official, folders):
    with pytest.raises(FileNotFoundError, match=r"No MNIST in root.*prepare_data\(\), which the trainer calls"):
        mnist(official).setup()
    datamodule = mnist(folders)
    datamodule.setup()
    assert len(datamodule.test_data) == 20


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_files_may_be_compressed_and_lie_in_root(official, tmp_path, compressed, flat):
    root = tmp_path / "root"
    folder = root if flat else root / "FashionMNIST" / "raw"
    shutil.copytree(official / "FashionMNIST" / "raw", folder)
    if compressed:
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(
                gzip.compress(path.read_bytes(), 1)
            )  # as Debian: not as published
            path.unlink()
    assert len(build(fashion(root)).test_data) == 20


def test_an_interrupted_conversion_leaves_nothing(official, monkeypatch):
    save, calls = Image.Image.save, []

    def fail_at_the_fiftieth(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 50:
            raise KeyboardInterrupt
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail_at_the_fiftieth)
        with pytest.raises(KeyboardInterrupt):
            mnist(official).prepare_data()
    assert contents(official) == ["FashionMNIST", "MNIST"]
    assert len(build(mnist(official)).test_data) == 20


def test_one_data_set_in_place_of_the_other(official):
    with pytest.raises(RuntimeError, match=rf"{IMAGES} is not the file of Fashion-MNIST: its contents' MD5 is not"):
        fashion(official / "MNIST" / "raw").prepare_data()
    assert not list(official.rglob("*_png"))


@pytest.mark.parametrize(("length", "problem"), [(0, "is not the file of MNIST"), (30, "cannot be read")])
def test_a_truncated_file_is_named(official, length, problem):
    raw = official / "MNIST" / "raw"
    path = raw / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress((raw / IMAGES).read_bytes())[:length])
    (raw / IMAGES).unlink()
    with pytest.raises(RuntimeError, match=f"{path} {problem}.*[Rr]eplace"):
        mnist(official).prepare_data()


def test_a_missing_file_is_named(official):
    (official / "MNIST" / "raw" / IMAGES).unlink()
    with pytest.raises(FileNotFoundError, match=rf"MNIST in {official} lacks {IMAGES}\. Put there .*https://ossci"):
        mnist(official).prepare_data()


@pytest.mark.parametrize("make", [mnist, fashion])
def test_nothing_there(tmp_path, make):
    expected = (
        r"MNIST in root.*Put there train-images-idx3-ubyte, .*plain or \.gz, from http.*or class folders.*download=True"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        make(tmp_path).prepare_data()


@pytest.mark.parametrize(("make", "reader"), [(mnist, MNIST), (fashion, FashionMNIST)])
def test_download_of_what_is_missing(official, tmp_path, monkeypatch, serve, make, reader):
    raw, served = official / reader.__name__ / "raw", tmp_path / "served"
    served.mkdir()
    for path in raw.iterdir():
        (served / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    url, handler = serve(served)
    monkeypatch.setattr(reader, "mirrors", [f"{url}/"])
    monkeypatch.setattr(reader, "resources", [(path.name, md5_of(path)) for path in served.iterdir()])
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(raw / IMAGES, root)
    for _ in range(2):
        assert len(build(make(root, download=True)).test_data) == 20
    assert len(handler.requests) == 3
    assert contents(root / reader.__name__ / "raw") == sorted(
        path.name for path in served.iterdir() if path.stem != IMAGES
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_class_folders_are_taken_as_they_are(tmp_path, suffix):
    for split in ("train", "test"):
        write_folder(tmp_path / split, CLOTHES, number=3)
        for path in (tmp_path / split).rglob("*.png"):
            path.rename(path.with_suffix(suffix))
    assert classes(build(fashion(tmp_path, 9)).test_data, label=0) == {"Ankle boot": 3}
    assert contents(tmp_path) == ["test", "train"]
    with pytest.raises(ValueError, match=r"train is not MNIST: Ankle boot, Bag, Coat, \.\.\. is none of its classes"):
        build(mnist(tmp_path))


def test_other_novel_images(folders, tmp_path):
    datamodule = build(mnist(folders, DIGITS, novel_dataset=fashion(folders, [0, 9])))
    assert classes(datamodule.test_data, label=1) == {"T-shirt_top": 2, "Ankle boot": 2}
    fakes = SemanticFolder(write_folder(tmp_path, ["fake"]), "fake", test_split_ratio=1.0)
    assert classes(build(fashion(folders, novel_dataset=fakes)).test_data) == {"Bag": 2, "fake": 10}


@pytest.fixture(scope="module")
def clothing(tmp_path_factory):
    """The files of Debian's package, linked into a folder of our own."""
    if not DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    root = tmp_path_factory.mktemp("fashion_mnist")
    for path in DEBIAN.glob("*.gz"):
        (root / path.name).symlink_to(path)
    return root


@pytest.mark.slow
def test_real_clothing(clothing, caplog):
    caplog.set_level(logging.INFO)
    datamodule = build(fashion(clothing, 9, setting="leave_one_out"))
    assert "train 48600 normal / 0 novel, val 5400 normal / 0 novel, test 9000 normal / 1000 novel" in caplog.text
    assert classes(datamodule.train_data, datamodule.val_data) == dict.fromkeys(CLOTHES[:9], 6000)
    assert classes(datamodule.test_data) == dict.fromkeys(CLOTHES, 1000)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        content = gzip.decompress((DEBIAN / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        labels = np.frombuffer(content, np.uint8, offset=8)
        for label, name in enumerate(CLOTHES):
            numbers = sorted(int(path.stem) for path in (clothing / "fashion_mnist_png" / split / name).iterdir())
            assert numbers == np.flatnonzero(labels == label).tolist()
    content = gzip.decompress((DEBIAN / "t10k-images-idx3-ubyte.gz").read_bytes())
    last = next((clothing / "fashion_mnist_png" / "test").glob("*/09999.png"))
    assert np.asarray(Image.open(last)).tobytes() == content[-784:]
