"""MNIST and Fashion-MNIST."""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from torchvision import datasets

from anomalib_defend.data.class_folders import ClassFolderDataModule, LabelledPixels, Split
from anomalib_defend.data.download import Source, fetch

FASHION_CLASSES = tuple(name.replace("/", "_") for name in datasets.FashionMNIST.classes)

_FILES = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, plain or .gz"
)
_PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}


class _IdxFiles(ClassFolderDataModule):
    """What both have in common: four idx files, as published, decompressed, or compressed anew."""

    published: ClassVar[type[datasets.MNIST]]  # torchvision's addresses and the checksums of the compressed files
    md5: ClassVar[dict[str, str]]  # of the decompressed ones

    def read_official_files(self) -> dict[Split, LabelledPixels] | None:
        """Read the idx files in ``root`` or where torchvision puts them."""
        files = {name: self._find(name) for name in self.md5}
        missing = [name for name, path in files.items() if path is None]
        if missing and not self.download:
            if len(missing) == len(files):
                return None
            msg = f"{self.title} in {self.root} lacks {', '.join(missing)}. Put there {self.official_files}."
            raise FileNotFoundError(msg)
        arrays = {name: self._read(path or self._fetch(name), name) for name, path in files.items()}
        return {
            split: LabelledPixels(
                arrays[f"{prefix}-images-idx3-ubyte"],
                [list(self.category_of_class)[label] for label in arrays[f"{prefix}-labels-idx1-ubyte"]],
            )
            for split, prefix in _PREFIXES.items()
        }

    @property
    def _download_folder(self) -> Path:
        return self.root / self.published.__name__ / "raw"

    def _find(self, name: str) -> Path | None:
        places = (self._download_folder, self.root)
        files = [place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
        return next((path for path in files if path.is_file()), None)

    def _fetch(self, name: str) -> Path:
        md5 = dict(self.published.resources)[f"{name}.gz"]
        return fetch(Source(f"{self.published.mirrors[0]}{name}.gz", md5), self._download_folder)

    def _read(self, path: Path, name: str) -> np.ndarray:
        """Return the array of an idx file: type and number of dimensions, their sizes (big endian), the values."""
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            msg = f"{path} cannot be read ({error}). Remove or replace it."
            raise RuntimeError(msg) from error
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != self.md5[name]:
            msg = f"{path} is not the file of {self.title}: its contents' MD5 is not {self.md5[name]}. Replace it."
            raise RuntimeError(msg)
        sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)


class SemanticMNIST(_IdxFiles):
    """MNIST: handwritten digits, 60,000 grey images of 28 x 28 pixels for training and 10,000 for test.

    The first ``prepare_data`` writes the images below ``mnist_png`` in ``root``. anomalib reads them with three equal
    channels.

    Args:
        root: Folder with the class folders ``{train,test}/<digit>/<image>``, or with the four official files in it or
            in its ``MNIST/raw``, plain or as ``.gz``.
        category: One digit or several, ``0`` to ``9``.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        download: Download the official files that are missing (12 MB) into ``root/MNIST/raw``.
        **kwargs: Further arguments of ``SemanticDataModule``.

    Source:
        http://yann.lecun.com/exdb/mnist/
    """

    title = "MNIST"
    folder_name = "mnist_png"
    official_files = f"{_FILES}, from {datasets.MNIST.mirrors[0]}"
    published = datasets.MNIST
    md5: ClassVar = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    @property
    def category_of_class(self) -> Mapping[str, str]:
        """Digits are categories."""
        return {str(digit): str(digit) for digit in range(10)}


class SemanticFashionMNIST(_IdxFiles):
    """Fashion-MNIST: ten kinds of clothing, each 6,000 grey images of 28 x 28 pixels for training and 1,000 for test.

    The first ``prepare_data`` writes the images below ``fashion_mnist_png`` in ``root``. anomalib reads them with three
    equal channels. Debian's package ``dataset-fashion-mnist`` has the files; link those of
    ``/usr/share/datasets/fashion-mnist`` into a folder of your own.

    Args:
        root: Folder with the class folders ``{train,test}/<class>/<image>``, or with the four official files in it or
            in its ``FashionMNIST/raw``, plain or as ``.gz``.
        category: One category or several, by number or name: 0 ``T-shirt_top`` (officially with a slash, which no
            folder name may hold), 1 ``Trouser``, 2 ``Pullover``, 3 ``Dress``, 4 ``Coat``, 5 ``Sandal``, 6 ``Shirt``,
            7 ``Sneaker``, 8 ``Bag``, 9 ``Ankle boot``.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        download: Download the official files that are missing (31 MB) into ``root/FashionMNIST/raw``.
        **kwargs: Further arguments of ``SemanticDataModule``.

    Source:
        https://github.com/zalandoresearch/fashion-mnist
    """

    title = "Fashion-MNIST"
    folder_name = "fashion_mnist_png"
    official_files = f"{_FILES}, from {datasets.FashionMNIST.mirrors[0]}"
    published = datasets.FashionMNIST
    md5: ClassVar = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }

    @property
    def category_of_class(self) -> Mapping[str, str]:
        """Classes are categories."""
        return {name: name for name in FASHION_CLASSES}
