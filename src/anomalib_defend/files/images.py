"""The one list of the images in a folder, and what else lies there that is one to everybody but anomalib."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from anomalib_defend.files.names import (
    composed,
    is_hidden,
    is_image,
    is_other_format,
    on_disk,
    shortened_paths,
    to_text,
)

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """What lies below a folder, or in one: images, and images in formats that anomalib does not read, both sorted."""

    images: list[str]
    other_formats: list[str]


def images_in(folder: Path, *, subfolders: bool = True) -> list[str]:
    """List the images of a folder, and say how many files of other formats lie beside them.

    Args:
        folder: Its name may be in another Unicode form than on disk.
        subfolders: Look at the folders below, too.

    Raises:
        OSError: If a folder cannot be read.
    """
    images, other_formats = list_images(folder, subfolders=subfolders)
    warn_of_other_formats(other_formats, folder)
    return images


def list_images(folder: Path, *, subfolders: bool = True) -> Listing:
    """List a folder and all folders below it; hidden files and folders are ignored.

    Links are followed, but no folder is entered twice. The order does not depend on the Unicode form of the names, so
    a copy made on another system is split alike.

    Args:
        folder: Its name may be in another Unicode form than on disk.
        subfolders: Look at the folders below, too.

    Raises:
        OSError: If a folder cannot be read.
    """
    listing = Listing([], [])
    for found in walk_images(folder, _raise):
        for kind, more in zip(listing, found, strict=True):
            kind.extend(more)
        if not subfolders:
            break
    return Listing(*(sorted(found, key=in_order) for found in listing))


def walk_images(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[Listing]:
    """List a folder, then those in it, one at a time, each as `list_images` does.

    Args:
        folder: Where to begin.
        onerror: Called where a folder cannot be read; the walk goes on if it returns.
    """
    entered: set[str] = set()
    for parent, folders, files in os.walk(on_disk(folder), followlinks=True, onerror=onerror):
        if os.path.realpath(parent) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(parent))
        folders[:] = sorted((name for name in folders if not is_hidden(name)), key=in_order)
        yield Listing(
            *(
                sorted((os.path.join(parent, name) for name in files if belongs(name)), key=in_order)  # noqa: PTH118 - 70,000 times
                for belongs in (is_image, is_other_format)
            )
        )


def in_order(path: str) -> tuple[str, str]:
    """Return what paths are sorted by: their names, whatever Unicode form they have."""
    return composed(path), path


def _raise(error: OSError) -> None:
    raise error


def warn_of_other_formats(paths: Iterable[str], folder: Path) -> None:
    """Say how many files of which formats are not used."""
    paths = list(paths)
    if paths:
        counts = Counter(Path(path).suffix.lower() for path in paths)
        logger.warning(
            "%d file(s) in %s are ignored, since anomalib does not read their format (%s): %s. Convert them to .jpg or "
            ".png if they belong to the data.",
            len(paths),
            to_text(str(folder)),
            ", ".join(f"{number} {suffix}" for suffix, number in sorted(counts.items())),
            shortened_paths(paths),
        )
