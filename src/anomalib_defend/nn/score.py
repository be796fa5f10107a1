"""From the patch tokens of teacher and student to score and map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def l2_normalize(tokens: Tensor) -> Tensor:
    """norm(v) = v / ||v||_2 over the channels, in float32 (eq. 3)."""
    return F.normalize(tokens.float(), dim=-1)


def anomaly_map(distances: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample per-patch distances [B, N] to a map [B, 1, *size], bilinearly and without scaling."""
    maps = distances.reshape(-1, 1, *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
