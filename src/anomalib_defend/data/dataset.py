"""Images with image-level labels; a missing or unreadable file is named."""

import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from anomalib.data import AnomalibDataset
from anomalib.data.dataclasses import DatasetItem
from pandas import DataFrame
from PIL import ExifTags, Image
from rich.progress import track
from torchvision.transforms.v2 import Transform

from anomalib_defend.files.equal import File
from anomalib_defend.files.names import to_text

logger = logging.getLogger(__name__)

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # SyntaxError: Pillow on a broken PNG

_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
DEEP = "anomalib would clip its 16-bit or float values, convert it to 8 bits per channel"
EMPTY = "the file is empty"
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


class Findings(NamedTuple):
    """Files that cannot be used, with the reason, and files whose EXIF data asks for a rotation."""

    unusable: dict[str, str]
    rotated: list[str]


def inspect_files(paths: list[str], *, decode: bool) -> Findings:
    """Open every file once.

    Args:
        paths: The files.
        decode: Decode every image. Otherwise only the header and the end are looked at, which finds empty, foreign
            and truncated files at a fraction of the cost.
    """
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        results = pool.map(partial(_inspect, decode=decode), paths)
        shown = track(results, "Checking images", len(paths), transient=True, disable=len(paths) < _SHOW_PROGRESS)
        found = dict(zip(paths, shown, strict=True))
    unusable = {path: reason for path, (reason, _) in found.items() if reason}
    return Findings(unusable, [path for path, (_, rotated) in found.items() if rotated])


def warn_of_rotation(rotated: list[str], number: int) -> None:
    """Say how many of the images would be upright in another viewer."""
    if rotated:
        logger.warning(
            "%d of %d images ask for a rotation in their EXIF data, which anomalib does not apply: %s. Rotate the "
            "files (mogrify -auto-orient) if upright images matter.",
            len(rotated),
            number,
            shortened_paths(rotated),
        )


def _inspect(path: str, *, decode: bool) -> tuple[str, bool]:
    """Return why a file cannot be used, or "", and whether it asks for a rotation."""
    try:
        with Image.open(path) as image:
            if decode or not _has_ending(path, _ENDINGS.get(image.format or "", b"")):
                image.load()
            if is_deep(image):
                return DEEP, False
            return "", "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except READ_ERRORS as error:
        return reason(path, error), False


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than the 8 bits that anomalib reads."""
    return image.mode.startswith(("I", "F"))


def reason(path: str, error: Exception) -> str:
    """Return in words why a file could not be read."""
    return EMPTY if Path(path).is_file() and not Path(path).stat().st_size else str(error)


def _has_ending(path: str, ending: bytes) -> bool:
    with Path(path).open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def shortened(names: Iterable[str], number: int = 3) -> str:
    """Return the first names, comma-separated, with dots for the others."""
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")


def shortened_paths(paths: Iterable[str], number: int = 3) -> str:
    """Return the first paths, as text that can be written everywhere."""
    return shortened(map(to_text, paths), number)
