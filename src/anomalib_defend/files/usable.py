"""Which files are images that anomalib reads, as a model needs them."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image
from rich.progress import track

from anomalib_defend.files.names import shortened_paths

logger = logging.getLogger(__name__)

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # SyntaxError: Pillow on a broken PNG

_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
DEEP = "anomalib would clip its 16-bit or float values, convert it to 8 bits per channel"
EMPTY = "the file is empty"
_SHOW_PROGRESS = 2000  # files


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
    try:
        return EMPTY if Path(path).is_file() and not Path(path).stat().st_size else str(error)
    except OSError:  # gone since, a name that is too long, a folder that may not be entered
        return str(error)


def _has_ending(path: str, ending: bytes) -> bool:
    with Path(path).open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending
