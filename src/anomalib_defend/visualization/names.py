"""Names of pictures: one an image, the same in each run, and such that every file system takes them."""

from __future__ import annotations

import os
import re
import unicodedata
from hashlib import blake2b
from pathlib import Path

HASH_BYTES = 8  # among a million images the chance that two of them share a name is below 1e-7
FOLDERS = 2  # of the image's folders, those that stay readable
FOLDER_LENGTH, STEM_LENGTH = 40, 80  # short enough for Windows, where whole paths have 260 characters

_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)


def picture_name(path: str | Path, suffix: str = ".png") -> str:
    """Name the picture of an image: the readable part of its path, and a hash of the whole.

    Plain ASCII without ``:`` and other special characters, no reserved name of Windows, no dots but the suffix's, and
    each part far below 255 bytes. Names differ in more than case where the images' paths differ in anything.

    Args:
        path: Of the image; relative to the working directory unless absolute. Bytes that are no UTF-8 are taken as
            Python's ``surrogateescape`` gives them.
        suffix: Of the picture's format.

    Returns:
        A relative path with ``/`` between its parts, such as ``dog/day1/0-8c1f0c57a2d1e6b4.png``.
    """
    full = os.path.abspath(path)  # noqa: PTH100 - two spellings of one path; links are not followed
    digest = blake2b(full.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).hexdigest()
    parts = Path(full).parts[1:]  # without the root
    folders = [_readable(part, FOLDER_LENGTH) for part in parts[:-1][-FOLDERS:]]
    stem = _readable(Path(full).stem, STEM_LENGTH)
    return "/".join([*folders, f"{stem}-{digest}{suffix}"])


def _readable(part: str, length: int) -> str:
    """Letters, digits, ``-`` and ``_`` of a part of a path, without accents; a run of others is one ``_``."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", part) if not unicodedata.combining(c))
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", plain)[:length]
    return f"{plain}_" if _RESERVED.fullmatch(plain) else plain or "_"
