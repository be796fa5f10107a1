"""Distances of teacher and cloner, and the map that follows from them, as pure functions.

Shapes: B images, L layers, D_l numbers in layer l, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

MAP_QUANTILE = 0.99
MAP_SIGMA = 4.0
MAP_KERNEL = 33  # four deviations to each side


def layer_distance(cloner: Sequence[Tensor], teacher: Sequence[Tensor], mse_weight: float) -> Tensor:
    """Sum over the layers of 1 - cos(a, b) + lambda mean (a - b)^2, of each image.

    Args:
        cloner: a, L tensors [B, D_l].
        teacher: b, L tensors [B, D_l].
        mse_weight: lambda.

    Returns:
        [B] float32.
    """
    with torch.autocast(cloner[0].device.type, enabled=False):
        pairs = [(a.float(), b.float()) for a, b in zip(cloner, teacher, strict=True)]
        distances = [1 - F.cosine_similarity(a, b, dim=1) + mse_weight * (a - b).square().mean(dim=1) for a, b in pairs]
        return torch.stack(distances).sum(dim=0)


def gradient_map(gradient: Tensor) -> Tensor:
    """How strongly the score depends on each pixel, smoothed: gradient [B, C, H, W] -> [B, 1, H, W].

    The sum over the channels of the gradient's size, clipped at its 99th percentile of the image, under a Gaussian.
    """
    size = gradient.float().abs().sum(dim=1, keepdim=True)
    # an image at a time: torch's quantile takes 16 million numbers
    limits = torch.stack([image.flatten().quantile(MAP_QUANTILE) for image in size])
    return gaussian_blur(size.minimum(limits[:, None, None, None]), [MAP_KERNEL, MAP_KERNEL], [MAP_SIGMA, MAP_SIGMA])
