"""From a file to pixels, exactly as anomalib reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalib_defend.data.dataset import DEEP, is_deep, reason
from anomalib_defend.files.names import on_disk


class UnusableImageError(ValueError):
    """A file that is no image that anomalib reads; the message says why, on one line."""


def read(path: str) -> Tensor:
    """Read an image [3, H, W], float32 in [0, 1], as ``anomalib.data.utils.read_image`` does.

    Raises:
        UnusableImageError: If it cannot be read.
    """
    try:
        with Image.open(spelled(path)) as image:
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


def spelled(path: str) -> str:
    """The path, or that of the file whose name differs in Unicode's form alone."""
    return path if Path(path).exists() else str(on_disk(Path(path)))
