"""Class folders, ``<category>/<image>``: how they are read, and how a data set in few big files becomes some, once."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from anomalib_defend.data.download import scratch_folder
from anomalib_defend.data.protocol import AnnotatedImage, Annotations, Setting
from anomalib_defend.data.semantic import SemanticDataModule
from anomalib_defend.files.images import list_images, warn_of_other_formats
from anomalib_defend.files.names import category_name, is_hidden, shortened, to_text

logger = logging.getLogger(__name__)

Split = Literal["train", "test"]
ClassFolders = dict[str, list[str]]  # category -> its image files

SPLITS: tuple[Split, Split] = ("train", "test")


class LabelledPixels(NamedTuple):
    """The images of one split in memory, uint8 ``[N, H, W]`` or ``[N, H, W, 3]``, and the class of each."""

    pixels: np.ndarray
    classes: list[str]


def read_class_folders(folder: Path) -> ClassFolders:
    """Return the images of each sub-folder; hidden ones and those without images are no categories.

    Names are as ``category_name`` gives them, also where an archive made on a Mac has left them decomposed.
    """
    found: ClassFolders = {}
    other_formats: list[str] = []
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name) or not path.is_dir():
            continue
        listing = list_images(path)
        other_formats += listing.other_formats
        if listing.images:
            found.setdefault(category_name(path.name), []).extend(listing.images)
    warn_of_other_formats(other_formats, folder)
    return found


def annotated_images(splits: Mapping[Split, ClassFolders], category_of: Mapping[str, str]) -> list[AnnotatedImage]:
    """Return the images of class folders, each with the category of its class."""
    return [
        AnnotatedImage(path, frozenset({category_of[name]}), split)
        for split, folders in splits.items()
        for name, paths in folders.items()
        for path in paths
    ]


def has_both_splits(folder: Path) -> bool:
    """Return whether a folder holds the folders ``train`` and ``test``."""
    return all((folder / split).is_dir() for split in SPLITS)


def write_class_folders(folder: Path, splits: Mapping[Split, LabelledPixels]) -> None:
    """Write ``folder/{train,test}/<class>/<number>.png``, entirely or not at all.

    The number is the image's position in the official order of its split.
    """
    with scratch_folder(folder.parent) as scratch:
        made = scratch / folder.name
        for split, (pixels, classes) in splits.items():
            for name in set(classes):
                (made / split / name).mkdir(parents=True)
            images = zip(pixels, classes, strict=True)
            progress = track(images, f"Writing {folder.name}/{split}", len(classes))
            for number, (image, name) in enumerate(progress):
                Image.fromarray(image).save(
                    made / split / name / f"{number:05d}.png", compress_level=1
                )  # 4 % larger, a third faster
        try:
            made.rename(folder)
        except OSError:
            if not has_both_splits(folder):  # else another node with the same disk was faster
                raise


class ClassFolderDataModule(SemanticDataModule):
    """Base of the data sets of small images that are published as few big files.

    ``prepare_data`` writes their images as class folders, once. Class folders that are there already, in ``root`` or
    where they would be written, are taken as they are.

    Args:
        root: Folder with the class folders ``{train,test}/<class>/<image>`` or the official files.
        category: One category or several, by name or number.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        download: Download the official files into ``root`` if neither they nor class folders are found there.
        **kwargs: Further arguments of ``SemanticDataModule``.
    """

    title: ClassVar[str]
    folder_name: ClassVar[str]  # of the class folders below root
    official_files: ClassVar[str]  # in words, with their address: what to put into root

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

    @property
    @abstractmethod
    def category_of_class(self) -> Mapping[str, str]:
        """The category of each class folder; the categories are numbered in this order."""

    @abstractmethod
    def read_official_files(self) -> dict[Split, LabelledPixels] | None:
        """Verify and read the official files, downloaded if asked to; ``None`` if there are none."""

    def prepare_data(self) -> None:
        """Write the images of the official files as class folders, unless there are some already.

        Raises:
            FileExistsError: If there is something else where the class folders would be written.
            FileNotFoundError: If there are neither class folders nor official files.
            PermissionError: If ``root`` cannot be written to.
            RuntimeError: If an official file is not what was published, or its download failed.
        """
        super().prepare_data()
        if self._find_class_folders() is not None:
            return
        folder = self.root / self.folder_name
        if folder.exists():
            msg = f"{folder} is not complete: it needs the folders train and test. Remove it to have it written anew."
            raise FileExistsError(msg)
        splits = self.read_official_files()
        if splits is None:
            raise FileNotFoundError(self._nothing_found())
        try:
            write_class_folders(folder, splits)
        except PermissionError as error:
            msg = f"Cannot write images into {self.root} ({error}). Copy or link its files into a folder of your own."
            raise PermissionError(msg) from error

    def read_annotations(self) -> Annotations:
        """Read the class folders.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If one of them is not named like a class of the data set.
        """
        folder = self._find_class_folders()
        if folder is None:
            msg = f"{self._nothing_found()} prepare_data(), which the trainer calls, reads the official files."
            raise FileNotFoundError(msg)
        splits = {split: read_class_folders(folder / split) for split in SPLITS}
        category_of = self.category_of_class
        self._check_classes(folder, splits)
        found = {category_of[name] for folders in splits.values() for name in folders}
        order = list(dict.fromkeys(category_of.values()))
        ids: dict[int | str, str] = {
            number: name for number, name in enumerate(order) if name in found and name != str(number)
        }
        logger.info("%s from %s.", self.title, to_text(str(folder)))
        return Annotations(sorted(found), annotated_images(splits, category_of), ids)

    def _find_class_folders(self) -> Path | None:
        return next((path for path in (self.root, self.root / self.folder_name) if has_both_splits(path)), None)

    def _check_classes(self, folder: Path, splits: Mapping[Split, ClassFolders]) -> None:
        """Refuse another data set; warn of an incomplete one."""
        category_of = self.category_of_class
        for split, folders in splits.items():
            if foreign := sorted(folders.keys() - category_of.keys()):
                msg = (
                    f"{folder / split} is not {self.title}: {shortened(foreign)} is none of its classes, which are "
                    f"{', '.join(category_of)}. For images of your own use SemanticFolder."
                )
                raise ValueError(msg)
            if missing := sorted(set(category_of.values()) - {category_of[name] for name in folders}):
                logger.warning("%s of %s has no images of: %s.", folder / split, self.title, ", ".join(missing))

    def _nothing_found(self) -> str:
        found = "it holds neither" if self.root.is_dir() else "there is no such folder"
        return (
            f"No {self.title} in root={str(self.root)!r}: {found}. Put there {self.official_files}, or class folders "
            f"{{train,test}}/<class>/<image>, or pass download=True."
        )
