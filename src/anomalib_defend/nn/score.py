"""From distances of patches to the map of an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def anomaly_map(distances: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample per-patch distances [B, N] to a map [B, 1, *size], bilinearly and without scaling."""
    maps = distances.reshape(-1, 1, *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
