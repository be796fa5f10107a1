"""Images with image-level labels; a missing or unreadable file is named."""

import os
from collections.abc import Mapping
from pathlib import Path

from anomalib.data import AnomalibDataset
from anomalib.data.dataclasses import DatasetItem
from pandas import DataFrame
from torchvision.transforms.v2 import Transform

from anomalib_defend.files.equal import File
from anomalib_defend.files.names import shortened_paths, to_text
from anomalib_defend.files.usable import READ_ERRORS


class SemanticDataset(AnomalibDataset):
    """Images with image-level labels.

    Args:
        samples: Frame as ``semantic.make_samples`` returns it.
        category: Name for result paths.
        augmentations: Applied to each image.
    """

    def __init__(self, samples: DataFrame, category: str = "", augmentations: Transform | None = None) -> None:
        super().__init__(augmentations=augmentations)
        self.samples = samples
        self.category = category

    def __getitem__(self, index: int) -> DatasetItem:
        """Return an item.

        Raises:
            OSError: If the image file cannot be read; the message names it.
        """
        try:
            return super().__getitem__(index)
        except READ_ERRORS as error:
            path = self.samples.iloc[index].image_path
            msg = (
                f"Cannot read image {to_text(path)} ({error}). Replace the file, or leave it out with on_error='skip'."
            )
            raise OSError(msg) from error


def refuse_missing(paths: list[str], files: Mapping[str, File]) -> None:
    """Refuse paths that lead to no file.

    Args:
        paths: The images that are used.
        files: What ``find_files`` has found.

    Raises:
        FileNotFoundError: If files are missing; the message has their number, folders and first names.
    """
    missing = [path for path in paths if path not in files]
    if missing:
        folders = shortened_paths(sorted({str(Path(path).parent) for path in missing}))
        backward = os.sep == "/" and any("\\" in path for path in missing)
        advice = " Write / instead of \\ in the list." if backward else ""
        msg = (
            f"{len(missing)} of {len(paths)} images are missing from {folders}: "
            f"{shortened_paths(Path(path).name for path in missing)}. Put the files there.{advice}"
        )
        raise FileNotFoundError(msg)
