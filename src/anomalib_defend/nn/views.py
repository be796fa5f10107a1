"""Views: the whole image and parts of it, each seen by an encoder as if it were a whole image.

A box is (left, top, right, bottom) in shares of an image's sides, or in pixels, ends excluded.
Shapes: B images, V views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import antialiased_resize, check_size

Box: TypeAlias = tuple[float, float, float, float]
Views = Literal["whole", "whole+centre", "whole+corners", "whole+centre+corners"]

PART = 0.6  # of the sides: corners overlap by a fifth of the image, so that none cuts what lies in the middle
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def layouts(part: float) -> dict[Views, tuple[Box, ...]]:
    """Boxes of each layout's views, the whole image first, whose parts have this share of the sides."""

    def box(left: float, top: float) -> Box:
        return left, top, left + part, top + part

    near, middle, far = 0.0, (1 - part) / 2, 1 - part
    centre = box(middle, middle)
    corners = [box(left, top) for top in (near, far) for left in (near, far)]
    return {
        "whole": (WHOLE,),
        "whole+centre": (WHOLE, centre),
        "whole+corners": (WHOLE, *corners),
        "whole+centre+corners": (WHOLE, centre, *corners),
    }


LAYOUTS = layouts(PART)
"""Boxes of the models' layouts."""


def needed_size(size: tuple[int, int], boxes: Sequence[Box]) -> tuple[int, int]:
    """Height and width of an image whose smallest views have ``size``, so that none has to be enlarged."""
    width = min(right - left for left, _, right, _ in boxes)
    height = min(bottom - top for _, top, _, bottom in boxes)
    # 0.6 is not exact in binary: 336 / 0.6 is not to become 561
    return math.ceil(size[0] / height - 1e-6), math.ceil(size[1] / width - 1e-6)


def check_views(images: Tensor, size: tuple[int, int], boxes: Sequence[Box], *, or_larger: bool = False) -> None:
    """See that images [B, C, H, W] were resized for views of ``size``: none is cut out of a smaller image.

    Raises:
        ValueError: If they have another size or, with ``or_larger``, a smaller one.
    """
    needed = needed_size(size, boxes)
    views = "" if len(boxes) == 1 else f" and {len(boxes)} views, which takes {needed}"
    check_size(images, needed, f"a model for image_size={size}{views}", or_larger=or_larger)


def pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of shares in whole pixels of an image of ``size`` (height, width): inside it, and at least one pixel.

    Boxes of the same shares have the same number of pixels, wherever they lie.
    """
    left, right = _interval(box[0], box[2], size[1])
    top, bottom = _interval(box[1], box[3], size[0])
    return left, top, right, bottom


def _interval(start: float, end: float, length: int) -> tuple[int, int]:
    extent = min(length, max(1, round((end - start) * length)))
    first = min(max(0, round(start * length)), length - extent)
    return first, first + extent


def cut(images: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """What a view shows of images [B, C, H, W], resized (antialiased) to ``size``: [B, C, *size]."""
    left, top, right, bottom = pixels(box, (images.shape[-2], images.shape[-1]))
    view = images[..., top:bottom, left:right]
    if (bottom - top, right - left) == size:
        return view
    with torch.autocast(images.device.type, enabled=False):
        if torch.compiler.is_compiling():  # torch's own is several times as fast, but is in no exporter
            return antialiased_resize(view, size)
        return F.interpolate(view, size, mode="bilinear", antialias=True)


def distance_map(distances: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """The views' distances or scores [B, V] where they lie: at each pixel the smallest of the views that hold it.

    Args:
        distances: Or scores, of each view.
        boxes: Of the views; together they cover the image.
        size: Height and width of the map.

    Returns:
        [B, 1, *size]. The smallest value of a map is the smallest of them.
    """
    height, width = size
    rows = torch.arange(height, device=distances.device)[:, None]
    columns = torch.arange(width, device=distances.device)
    nearest = distances.amax(dim=1)[:, None, None, None].expand(-1, 1, height, width)
    for index, box in enumerate(boxes):
        left, top, right, bottom = pixels(box, size)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        own = torch.minimum(nearest, distances[:, index, None, None, None])
        nearest = torch.where(inside, own, nearest)
    return nearest
