"""The loss of images by the mean of their maps, and the map by the network's output.

Shapes: B images.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SCORE = 1e-6  # of an anomalous image: nearer to zero the gradient would grow without bound


def pseudo_huber(output: Tensor) -> Tensor:
    """sqrt(u^2 + 1) - 1 at every place, in a form that keeps its digits where u is small."""
    squared = output.float().square()
    return squared / ((squared + 1).sqrt() + 1)


def hypersphere_loss(scores: Tensor, anomalous: Tensor) -> Tensor:
    """Mean over images of a for normal and -log(1 - exp(-a)) for anomalous ones, a scalar.

    Args:
        scores: a, the mean of each image's map, [B].
        anomalous: Which images are, [B], bool.
    """
    away = -torch.log(-torch.expm1(-scores.clamp_min(LEAST_SCORE)))
    return torch.where(anomalous, away, scores).mean()
