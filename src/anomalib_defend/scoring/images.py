"""From a file to pixels, exactly as anomalib reads them."""

from __future__ import annotations

import functools
import io
import os
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalib_defend.files.names import Spellings
from anomalib_defend.files.usable import DEEP, EMPTY, is_deep, reason

from .remote import is_address, read_bytes


class UnusableImageError(ValueError):
    """A file that is no image that anomalib reads; the message says why, on one line."""


def read(path: str) -> Tensor:
    """Read an image [3, H, W], float32 in [0, 1], as ``anomalib.data.utils.read_image`` does.

    Args:
        path: Of a file, or an address (``s3://bucket/key``).

    Raises:
        UnusableImageError: If it cannot be read.
    """
    try:
        with Image.open(opened(path)) as image:
            if is_deep(image):
                raise UnusableImageError(DEEP)
            pixels = np.array(image.convert("RGB"))
    except UnusableImageError:
        raise
    except Exception as error:  # whatever Pillow raises, it is this image's
        words = " ".join(reason(path, error).split()) or type(error).__name__
        raise UnusableImageError(words) from error
    values = torch.from_numpy(pixels).permute(2, 0, 1)
    return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def opened(path: str) -> str | BinaryIO:
    """What Pillow opens: the path, that of the file whose name differs in Unicode's form alone, or an address's file.

    Raises:
        OSError: If the file of an address cannot be read.
        UnusableImageError: If it is empty.
    """
    if not is_address(path):
        if os.path.exists(path):  # noqa: PTH110 - pathlib's raises for some paths
            return path
        return _spellings(os.path.dirname(path)).on_disk(path)  # noqa: PTH120 - paths are strings here
    content = read_bytes(path)
    if not content:
        raise UnusableImageError(EMPTY)
    return _File(path, content)


@functools.lru_cache(maxsize=16)  # of a list whose files are gone, each would list its whole folder
def _spellings(folder: str) -> Spellings:
    del folder
    return Spellings()


class _File(io.BytesIO):
    """Shows its address where Pillow's errors name the file."""

    def __init__(self, address: str, content: bytes) -> None:
        super().__init__(content)
        self._address = address

    def __repr__(self) -> str:
        return repr(self._address)
