"""A user's own images in class folders."""

from pathlib import Path
from typing import Any

from anomalib_defend.data.class_folders import (
    SPLITS,
    ClassFolders,
    Split,
    annotated_images,
    has_both_splits,
    read_class_folders,
)
from anomalib_defend.data.drawing import permutation
from anomalib_defend.data.protocol import Annotations, Setting
from anomalib_defend.data.semantic import SemanticDataModule
from anomalib_defend.files.equal import find_files
from anomalib_defend.files.images import list_images
from anomalib_defend.files.names import on_disk, shortened_paths

_LAYOUTS = "root/<category>/<image>, which is split automatically, or root/{train,test}/<category>/<image>"


class SemanticFolder(SemanticDataModule):
    """Your own images, ``root/<category>/<image>`` or ``root/{train,test}/<category>/<image>``.

    Folders inside of a category are part of it. Hidden files, other files than images, and folders without images are
    ignored; images in formats that anomalib does not read (.heic, .jfif ...) are counted in a warning. An image that is
    linked into several categories belongs to all of them. With ``train`` and ``test``, what else lies in ``root`` is
    ignored, and a category that is in ``test`` only is novel in ``uni_class``.

    Args:
        root: Folder of the categories, or of ``train`` and ``test``.
        category: One category or several: the names of the folders.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        test_split_ratio: For ``root/<category>/<image>``: the fraction of each category that is drawn, by ``seed``, for
            the test; at least one image of each and not all of them. 1 makes all of them test images: a folder of
            fakes as another data set's ``novel_dataset``. Unused with ``root/{train,test}``.
        **kwargs: Further arguments of ``SemanticDataModule``.

    Raises:
        ValueError: If ``test_split_ratio`` is not above 0 and at most 1.
    """

    def __init__(
        self,
        root: Path | str,
        category: list[str | int] | str | int,
        setting: Setting = "uni_class",
        *,
        test_split_ratio: float = 0.2,
        **kwargs: Any,  # declared in the base class, where jsonargparse finds them
    ) -> None:
        super().__init__(root=root, category=category, setting=setting, test_split_ratio=test_split_ratio, **kwargs)
        if not 0 < test_split_ratio <= 1:
            msg = f"test_split_ratio must be above 0 and at most 1, got {test_split_ratio}."
            raise ValueError(msg)

    def read_annotations(self) -> Annotations:
        """List the images, and split them where the folders do not.

        Raises:
            FileNotFoundError: If there are no categories, or only one of ``train`` and ``test``.
            ValueError: If images lie beside the categories, or if ``seed`` is ``None`` and needed.
        """
        if not self.root.is_dir():
            msg = f"No images: root={str(self.root)!r} is no folder. Expected {_LAYOUTS}."
            raise FileNotFoundError(msg)
        self._check_single_split()
        if has_both_splits(self.root):
            splits = {split: _read_categories(self.root / split) for split in SPLITS}
        else:
            splits = self._split(_read_categories(self.root))
        categories = {name for folders in splits.values() for name in folders}
        images = annotated_images(splits, {name: name for name in categories})
        places = [self.root / split for split in SPLITS] if has_both_splits(self.root) else [self.root]
        empty = {name for name in self.categories for place in places if on_disk(place / name).is_dir()} - categories
        return Annotations(sorted(categories | empty), images)  # a chosen one without images is refused as such

    def _check_single_split(self) -> None:
        """Refuse a ``train`` without ``test`` or the reverse, unless it is a category of that name."""
        for split, other in zip(SPLITS, reversed(SPLITS), strict=True):
            folder = self.root / split
            if folder.is_dir() and not (self.root / other).is_dir() and read_class_folders(folder):
                msg = (
                    f"{self.root} holds {split} but not {other}. Expected {_LAYOUTS}. To split the images of {split} "
                    f"automatically, pass root={str(folder)!r}."
                )
                raise FileNotFoundError(msg)

    def _split(self, categories: ClassFolders) -> dict[Split, ClassFolders]:
        """Draw the test images of each category: the same ones wherever the folder lies and however it is listed."""
        if self.seed is None and self.test_split_ratio < 1:
            msg = "seed=None would draw other test images for the test than for the training. Give a seed."
            raise ValueError(msg)
        files = find_files(path for paths in categories.values() for path in paths)
        drawn: dict[object, Split] = {}  # a file that is linked into two categories has one split
        splits: dict[Split, ClassFolders] = {split: {name: [] for name in categories} for split in SPLITS}
        for name, paths in categories.items():
            num_test = len(paths)
            if self.test_split_ratio < 1:
                num_test = min(max(round(len(paths) * self.test_split_ratio), 1), len(paths) - 1)
            order = permutation(len(paths), self.seed)
            for rank, index in enumerate(order):
                path = paths[index]
                split = drawn.setdefault(
                    files[path].key if path in files else path, "test" if rank < num_test else "train"
                )
                splits[split][name].append(path)
        return splits


def _read_categories(folder: Path) -> ClassFolders:
    loose = [Path(path).name for path in list_images(folder, subfolders=False).images]
    if loose:
        msg = (
            f"{len(loose)} image(s) lie in {folder} itself and not in a category: {shortened_paths(loose)}. Expected "
            f"{_LAYOUTS}. Move them into the folder of their category, or elsewhere."
        )
        raise ValueError(msg)
    categories = read_class_folders(folder)
    if not categories:
        msg = f"{folder} holds no folder with images. Expected {_LAYOUTS}."
        raise FileNotFoundError(msg)
    return categories
