"""Pascal VOC 2012 and data sets in its layout."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torchvision.datasets.voc import DATASET_YEAR_DICT

from anomalib_defend.data.download import Source, fetch_folder
from anomalib_defend.data.protocol import AnnotatedImage, Annotations, Setting
from anomalib_defend.data.semantic import SemanticDataModule
from anomalib_defend.data.text_files import read_lines, read_xml
from anomalib_defend.files.names import Spellings, composed, is_hidden, to_text

logger = logging.getLogger(__name__)

_PLACES = (".", "VOC2012", "VOCdevkit/VOC2012")  # where the devkit may lie below root
_LIST_NAME = re.compile(r"(?P<category>.+)_(?P<split>train|val|trainval)\.txt")
_FLAGS = {"1": True, "0": True, "-1": False}  # 0: only difficult objects, which count as present
_SUFFIXES = (".jpg", ".jpeg", ".png")


class SemanticVOC(SemanticDataModule):
    """Pascal VOC 2012: an image belongs to every category of which it holds an object, difficult ones included.

    With ``ImageSets/Segmentation/val.txt`` the test images are those it lists, labelled by the Main lists or, for
    images that are not in them, by ``Annotations``; training images are the other images of the Main lists. Without it,
    the Main train lists give the training and the Main val lists the test images.

    Args:
        root: VOC2012, VOCdevkit, or the folder that holds VOCdevkit.
        category: One category or several: the prefixes of ``ImageSets/Main/<category>_{train,val}.txt``.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        download: Download the official archive (2 GB) into ``root`` if no devkit is found there.
        **kwargs: Further arguments of ``SemanticDataModule``.

    Source:
        http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
    """

    def __init__(
        self,
        root: Path | str,
        category: list[str | int] | str | int,
        setting: Setting = "uni_class",
        *,
        download: bool = False,
        **kwargs: Any,  # declared in the base class, where jsonargparse finds them
    ) -> None:
        super().__init__(root=root, category=category, setting=setting, **kwargs)
        self.download = download

    def prepare_data(self) -> None:
        """Download the data set if asked to and needed.

        Raises:
            FileNotFoundError: If there is no devkit and ``download`` is false.
        """
        super().prepare_data()
        if self.download and _find_devkit(self.root) is None:
            info = DATASET_YEAR_DICT["2012"]
            fetch_folder(Source(info["url"], info["md5"]), self.root, info["base_dir"])
        self._devkit()

    def read_annotations(self) -> Annotations:
        """Read the image set lists and, for test images that are not in them, the XML annotations.

        Raises:
            FileNotFoundError: If the devkit, its lists or an annotation file is missing.
            ValueError: If a list or an annotation file is malformed.
        """
        devkit = self._devkit()
        images_folder = devkit / "JPEGImages"
        files = _ImageFiles(images_folder)
        categories, labels = _read_main(devkit / "ImageSets" / "Main", files)
        segmentation = devkit / "ImageSets" / "Segmentation" / "val.txt"
        if segmentation.is_file():
            test_ids = [files.id_on_disk(image) for image in read_lines(segmentation) if image]
            listed = _merge(labels.values())
            test_labels = {image: listed[image] for image in test_ids if image in listed}
            unlisted = [image for image in test_ids if image not in listed and not is_hidden(image)]
            test_labels |= _read_xml(devkit / "Annotations", unlisted)
            train_labels = {image: names for image, names in listed.items() if image not in test_labels}
        else:
            train_labels, test_labels = labels["train"], labels["val"]
            if not train_labels or not test_labels:
                msg = (
                    f"No test split in {devkit / 'ImageSets'}: expected Main/<category>_train.txt and _val.txt, or "
                    "Segmentation/val.txt."
                )
                raise FileNotFoundError(msg)
        logger.info(
            "Pascal VOC from %s; test images from ImageSets/%s.",
            to_text(str(devkit)),
            "Segmentation/val.txt" if segmentation.is_file() else "Main/*_val.txt",
        )
        by_split: dict[Literal["train", "test"], dict[str, set[str]]] = {"train": train_labels, "test": test_labels}
        images = [
            AnnotatedImage(str(images_folder / files.name_of(image)), frozenset(names), split)
            for split, split_labels in by_split.items()
            for image, names in split_labels.items()
        ]
        return Annotations(categories, images)

    def _devkit(self) -> Path:
        devkit = _find_devkit(self.root)
        if devkit is None:
            found = "there is no such folder" if not self.root.is_dir() else "it holds no ImageSets/Main"
            msg = (
                f"No Pascal VOC data in root={str(self.root)!r}: {found}. Expected there, or in its VOC2012 or "
                f"VOCdevkit/VOC2012: ImageSets/Main/<category>_{{train,val,trainval}}.txt and JPEGImages/<id>.jpg. "
                f"Pass download=True, or unpack {DATASET_YEAR_DICT['2012']['url']} there."
            )
            raise FileNotFoundError(msg)
        return devkit


def _find_devkit(root: Path) -> Path | None:
    return next((root / place for place in _PLACES if (root / place / "ImageSets" / "Main").is_dir()), None)


class _ImageFiles:
    """The images of a devkit by id: the file name without its ending; the first of ``_SUFFIXES`` wins."""

    def __init__(self, folder: Path) -> None:
        self._names: dict[str, str] = {}
        rank = {suffix: index for index, suffix in enumerate(_SUFFIXES)}
        files = [path for path in folder.iterdir() if path.suffix.lower() in rank] if folder.is_dir() else []
        for path in sorted(files, key=lambda path: rank[path.suffix.lower()], reverse=True):
            if not is_hidden(path.name):
                self._names[path.stem] = path.name
        self._composed = {composed(image): image for image in self._names}

    def id_on_disk(self, image: str) -> str:
        """Return a listed id in the Unicode form that the image's file has."""
        return image if image in self._names else self._composed.get(composed(image), image)

    def name_of(self, image: str) -> str:
        """Return the name of an image's file, or the one that it should have."""
        return self._names.get(image, f"{image}.jpg")


def _read_main(folder: Path, files: _ImageFiles) -> tuple[list[str], dict[str, dict[str, set[str]]]]:
    """Return the categories and, for train, val and trainval, the categories of each image that the lists name."""
    categories: set[str] = set()
    labels: dict[str, dict[str, set[str]]] = {"train": {}, "val": {}, "trainval": {}}
    for path in sorted(folder.iterdir()):
        match = _LIST_NAME.fullmatch(path.name)
        if match is None or is_hidden(path.name):
            continue
        category, split = match["category"], match["split"]
        categories.add(category)
        for number, line in enumerate(read_lines(path), start=1):
            if not line:
                continue
            image, _, flag = line.replace("\t", " ").rpartition(" ")  # an id may hold spaces
            if not image or flag not in _FLAGS:
                msg = (
                    f"{path}, line {number}: expected '<image id> <1, 0 or -1>', got {to_text(line)!r}. Correct the "
                    "list; if it is Pascal VOC's own, unpack it again."
                )
                raise ValueError(msg)
            names = labels[split].setdefault(files.id_on_disk(image.strip()), set())
            if _FLAGS[flag]:
                names.add(category)
    if not categories:
        msg = f"{folder} holds no <category>_train.txt, <category>_val.txt or <category>_trainval.txt."
        raise FileNotFoundError(msg)
    return sorted(categories), labels


def _merge(splits: Iterable[dict[str, set[str]]]) -> dict[str, set[str]]:
    merged: dict[str, set[str]] = {}
    for split in splits:
        for image, names in split.items():
            merged.setdefault(image, set()).update(names)
    return merged


def _read_xml(folder: Path, images: list[str]) -> dict[str, set[str]]:
    """Return the categories of the objects in ``<folder>/<image>.xml``, for each image."""
    spellings = Spellings()
    paths = {image: Path(spellings.on_disk(str(folder / f"{image}.xml"))) for image in images}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        msg = (
            f"{len(missing)} test image(s) of ImageSets/Segmentation/val.txt have neither a label in ImageSets/Main "
            f"nor an annotation file; the first one missing is {to_text(str(missing[0]))}."
        )
        raise FileNotFoundError(msg)
    return {image: _object_names(path) for image, path in paths.items()}


def _object_names(path: Path) -> set[str]:
    return {(item.findtext("name") or "").strip() for item in read_xml(path).iter("object")} - {""}
