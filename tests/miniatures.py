"""Miniature data sets in the official formats."""

import hashlib
import json
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from anomalib_defend.data import SemanticFashionMNIST, SemanticMNIST

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
# Both lists and the numbers as in the official files, written down independently of the package's table
CIFAR100_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
""".split()  # noqa: SIM905
CIFAR100_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
""".split()  # noqa: SIM905
CIFAR100_COARSE_OF_FINE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
]


def write_cifar10(folder: Path) -> Path:
    """Write ``cifar-10-batches-py``: of each class five training images, one in each batch, and two test images.

    The red value is the class, the green one the position in the batch.
    """
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for number in range(1, 6):
        _pickle(batches / f"data_batch_{number}", _cifar_batch(list(range(10)), "labels"))
    _pickle(batches / "test_batch", _cifar_batch(list(range(10)) * 2, "labels"))
    _pickle(batches / "batches.meta", {"label_names": CIFAR10_NAMES, "num_vis": 3072, "num_cases_per_batch": 10})
    return folder


def write_cifar100(folder: Path) -> Path:
    """Write ``cifar-100-python``: two training images and one test image of each fine class; colours as above."""
    batches = folder / "cifar-100-python"
    batches.mkdir(parents=True)
    for name, labels in (("train", list(range(100)) * 2), ("test", list(range(100)))):
        coarse = [CIFAR100_COARSE_OF_FINE[label] for label in labels]
        _pickle(batches / name, {**_cifar_batch(labels, "fine_labels"), "coarse_labels": coarse})
    _pickle(batches / "meta", {"fine_label_names": CIFAR100_FINE, "coarse_label_names": CIFAR100_COARSE})
    return folder


def _cifar_batch(labels: list[int], key: str) -> dict[str, object]:
    pixels = np.random.default_rng(0).integers(0, 255, (len(labels), 3, 32, 32), dtype=np.uint8)
    pixels[:, 0] = np.array(labels)[:, None, None]
    pixels[:, 1] = np.arange(len(labels))[:, None, None]
    return {"data": pixels.reshape(len(labels), 3072), key: labels}


def _pickle(path: Path, content: dict[str, object]) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_mnist(folder: Path) -> Path:
    """Write ``MNIST/raw``: four training images and two test images of each class, the first pixel is the class."""
    _write_idx(folder / "MNIST" / "raw")
    return folder


def write_fashion_mnist(folder: Path) -> Path:
    """Write ``FashionMNIST/raw``, like ``write_mnist`` but with other pixels."""
    _write_idx(folder / "FashionMNIST" / "raw", seed=1)
    return folder


def _write_idx(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for prefix, number in (("train", 4), ("t10k", 2)):
        labels = np.tile(np.arange(10, dtype=np.uint8), number)
        pixels = np.random.default_rng(seed).integers(0, 255, (len(labels), 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = labels
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


def write_images(folder: Path, count: int, seed: int = 1) -> list[str]:
    """Images of different sizes and formats, in the order in which they are scored."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(seed), []
    for index in range(count):
        size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
        coarse = rng.integers(0, 255, size, dtype=np.uint8)
        paths.append(str(folder / f"{index:03d}.{'png' if index % 3 else 'jpg'}"))
        Image.fromarray(coarse).save(paths[-1])
    return paths


def write_folder(folder: Path, categories: Sequence[str] = ("cat", "dog", "fox"), number: int = 10) -> Path:
    """Write ``<category>/<number>.png``."""
    rng = np.random.default_rng(0)
    for category in categories:
        (folder / category).mkdir(parents=True)
        for index in range(number):
            pixels = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / category / f"{index:02d}.png")
    return folder


Labels = dict[str, dict[str, int]]  # image -> category -> flag, 0 for "only difficult objects"
VOC_CATEGORIES = ("cat", "dog", "person")
VOC_TRAIN: Labels = {
    **{f"t0{i}": {"dog": 1} for i in range(8)},
    "t08": {"dog": 1, "cat": 1},
    "t09": {"dog": 0, "person": 1},
    **{f"t{i}": {"cat": 1} for i in range(10, 16)},
    **{f"t{i}": {"person": 1} for i in range(16, 20)},
}
VOC_VAL: Labels = {
    "v00": {"dog": 1},
    "v01": {"dog": 0},
    "v02": {"dog": 1, "cat": 1},
    "v03": {"cat": 1},
    "v04": {"cat": 1, "person": 1},
    "v05": {"person": 1},
    "v06": {"person": 1},
    "v07": {},
}


def write_voc(
    devkit: Path,
    *,
    train: Labels | None = None,
    val: Labels | None = None,
    segmentation: list[str] | None = None,
    xml: Labels | None = None,
    suffix: str = ".jpg",
    categories: tuple[str, ...] = VOC_CATEGORIES,
) -> Path:
    """Write Main lists and images of ``train`` and ``val``, and images with XML annotations of ``xml``."""
    train, val, xml = VOC_TRAIN if train is None else train, VOC_VAL if val is None else val, xml or {}
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


COCO_CATEGORIES = {1: "person", 18: "dog", 77: "cell phone", 90: "toothbrush"}  # 90 has no annotation
COCO_LABELS = {  # the categories of each image
    "train": {
        **{image: [18] for image in range(1, 9)},  # 8 is a crowd
        **{image: [18, 1] for image in (9, 10)},
        **{image: [1] for image in range(11, 15)},
        **{image: [77, 77, 1] for image in (15, 16)},
        **{image: [] for image in (17, 18)},
    },
    "val": {101: [18], 102: [18], 103: [18, 1], 104: [1], 105: [1], 106: [77], 107: [], 108: []},  # 102 is a crowd
}
COCO_CROWDS = {8, 102}


def write_coco(folder: Path, year: int = 2017, images: str = ".") -> Path:
    """Write the instances files and the images, those in ``train<year>`` and ``val<year>`` of the folder ``images``."""
    number = 0
    for split, labels in COCO_LABELS.items():
        names = {image: f"{image:012d}.jpg" for image in labels}
        if year == 2014:
            names = {image: f"COCO_{split}2014_{name}" for image, name in names.items()}
        content = {
            "info": {"year": year},
            "licenses": [{"id": 1, "url": "http://example.org", "name": "none"}],
            "images": [
                {"license": 1, "file_name": name, "height": 32, "width": 40, "id": image, "flickr_url": "http://"}
                for image, name in names.items()
            ],
            "annotations": [],
            "categories": [{"supercategory": "x", "id": id_, "name": name} for id_, name in COCO_CATEGORIES.items()],
        }
        for image, categories in labels.items():
            outline = {"counts": [5, 1275], "size": [32, 40]} if image in COCO_CROWDS else [[1.5, 2, 9, 2, 9, 8.25]]
            for category in categories:
                number += 1
                content["annotations"].append(  # type: ignore[attr-defined]
                    {"segmentation": outline, "area": 23.4, "iscrowd": int(image in COCO_CROWDS), "image_id": image,
                     "bbox": [1.5, 2, 7.5, 6.25], "category_id": category, "id": number},
                )  # fmt: skip
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / f"instances_{split}{year}.json").write_text(json.dumps(content))
        (folder / images / f"{split}{year}").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name in names.values():
            pixels = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / images / f"{split}{year}" / name)
    return folder


def trust(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make the miniatures in a folder the official ones: their checksums take the place of those published."""
    for reader in (CIFAR10, CIFAR100):
        batches, archive = folder / reader.base_folder, folder / reader.filename
        if batches.is_dir():
            for name in ("train_list", "test_list"):
                files = [[file, md5_of(batches / file)] for file, _ in getattr(reader, name)]
                monkeypatch.setattr(reader, name, files)
            monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5_of(batches / reader.meta["filename"])})
        if archive.is_file():
            monkeypatch.setattr(reader, "tgz_md5", md5_of(archive))
    for datamodule, published in ((SemanticMNIST, MNIST), (SemanticFashionMNIST, FashionMNIST)):
        raw = folder / published.__name__ / "raw"
        if raw.is_dir():
            monkeypatch.setattr(datamodule, "md5", {name: md5_of(raw / name) for name in datamodule.md5})
    return folder


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


WRITERS = {
    "SemanticVOC": write_voc,
    "SemanticCOCO": write_coco,
    "SemanticCIFAR10": write_cifar10,
    "SemanticCIFAR100": write_cifar100,
    "SemanticMNIST": write_mnist,
    "SemanticFashionMNIST": write_fashion_mnist,
    "SemanticFolder": write_folder,
}
