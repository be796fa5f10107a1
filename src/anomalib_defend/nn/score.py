"""From distances of patches to the map of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .views import Box, pixels


def anomaly_map(distances: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample per-patch distances [B, N] to a map [B, 1, *size], bilinearly and without scaling."""
    maps = distances.reshape(-1, 1, *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def map_of_views(distances: Tensor, boxes: Sequence[Box], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Per-patch distances of each view [V, B, N] where they lie: at each pixel the smallest of the views that hold it.

    Args:
        distances: Of each view, the whole image first.
        boxes: Of the views.
        grid: Rows and columns of a view's patches.
        size: Height and width of the map.

    Returns:
        [B, 1, *size], not scaled.
    """
    (height, width), nearest = size, anomaly_map(distances[0], grid, size)
    for view, box in zip(distances[1:], boxes[1:], strict=True):
        left, top, right, bottom = pixels(box, size)
        borders = (left, width - right, top, height - bottom)
        own = anomaly_map(view, grid, (bottom - top, right - left))
        inside = F.pad(torch.ones_like(own, dtype=torch.bool), borders)
        nearest = torch.where(inside, torch.minimum(nearest, F.pad(own, borders)), nearest)
    return nearest
