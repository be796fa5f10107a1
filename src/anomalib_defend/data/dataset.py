"""Images with image-level labels; a missing or unreadable file is named."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from anomalib.data import AnomalibDataset
from anomalib.data.dataclasses import DatasetItem
from pandas import DataFrame
from PIL import Image
from rich.progress import track
from torchvision.transforms.v2 import Transform

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # SyntaxError: Pillow on a broken PNG

_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_SHOW_PROGRESS = 2000  # files


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
            msg = f"Cannot read image {path} ({error}). Replace the file, or leave it out with on_error='skip'."
            raise OSError(msg) from error


def check_files(paths: list[str]) -> None:
    """Check that all files exist, without opening them.

    Raises:
        FileNotFoundError: If files are missing; the message has their number, folders and first names.
    """
    missing = [Path(path) for path in paths if not Path(path).exists()]
    if missing:
        folders = ", ".join(sorted({str(path.parent) for path in missing})[:3])
        msg = (
            f"{len(missing)} of {len(paths)} images are missing from {folders}: "
            f"{shortened(path.name for path in missing)}. Put the files there."
        )
        raise FileNotFoundError(msg)


def unreadable_files(paths: list[str], *, decode: bool) -> dict[str, str]:
    """Return the files that are not complete images, with the reason.

    Args:
        paths: The files.
        decode: Decode every image. Otherwise only the header and the end are looked at, which finds empty, foreign
            and truncated files at a hundredth of the cost.
    """
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        reasons = pool.map(partial(_why_unreadable, decode=decode), paths)
        shown = track(reasons, "Checking images", len(paths), transient=True, disable=len(paths) < _SHOW_PROGRESS)
        return {path: reason for path, reason in zip(paths, shown, strict=True) if reason}


def _why_unreadable(path: str, *, decode: bool) -> str:
    try:
        with Image.open(path) as image:
            if decode or not _has_ending(path, _ENDINGS.get(image.format or "", b"")):
                image.load()
    except READ_ERRORS as error:
        return "the file is empty" if Path(path).is_file() and not Path(path).stat().st_size else str(error)
    return ""


def _has_ending(path: str, ending: bytes) -> bool:
    with Path(path).open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def shortened(names: Iterable[str], number: int = 3) -> str:
    """Return the first names, comma-separated, with dots for the others."""
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")
