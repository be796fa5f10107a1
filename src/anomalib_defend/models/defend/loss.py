"""The losses of both stages, as pure functions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_defend.nn.score import l2_normalize

FeatureNorm = Literal["l2", "layer_norm", "none"]
DistillLoss = Literal["mse", "smooth_l1"]

TEMPERATURE = 0.1


def dense_loss(similarities: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the crops' prototype predictions with the aligned assignments (eq. 1).

    Args:
        similarities: P = Z C^T per crop and position, [M, R, R, K].
        targets: Labels y, [M, R, R] long, or soft assignments Q, [M, R, R, K].

    Returns:
        Mean over crops and positions, a scalar.
    """
    # written out: torch's own loss over an image is not deterministic on CUDA
    log_p = (similarities.float().movedim(-1, 1) / TEMPERATURE).log_softmax(dim=1)
    if targets.is_floating_point():
        return -(targets.movedim(-1, 1) * log_p).sum(dim=1).mean()
    return -log_p.gather(1, targets.unsqueeze(1)).mean()


def normalize_features(tokens: Tensor, norm: FeatureNorm) -> Tensor:
    """Normalise the teacher's patch tokens [..., D] as they are compared: eq. 3, or LayerNorm without affine."""
    if norm == "l2":
        return l2_normalize(tokens)
    if norm == "layer_norm":
        return F.layer_norm(tokens.float(), tokens.shape[-1:])
    return tokens.float()


def feature_distance(student: Tensor, teacher: Tensor, loss: DistillLoss) -> Tensor:
    """Distance of normalised features, summed over the channels: two [..., D] -> [...]."""
    with torch.autocast(student.device.type, enabled=False):
        if loss == "smooth_l1":
            return F.smooth_l1_loss(student.float(), teacher.float(), reduction="none").sum(-1)
        return (student.float() - teacher.float()).square().sum(-1)
