"""What a teacher shows its student, and the distance of their features (MKD, eq. 3 and 4).

Source: Salehi et al., "Redefining Normal: A Novel Object-Level Approach for Multi-Object Novelty Detection", ACCV 2024.
Shapes: B images, L layers, N patches, D channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FeatureNorm = Literal["l2", "layer_norm", "none"]
DistillLoss = Literal["mse", "smooth_l1"]


class TeacherOutput(NamedTuple):
    """What distillation needs of one teacher pass: it depends on the image alone, not on the epoch."""

    layers: list[Tensor]
    """Normalised patch tokens T' of the last blocks, L tensors [B, N, D]."""
    attention: Tensor | None
    """Attention of a block's [CLS] to each patch, [B, N]; ``None`` unless it guides masks or weights the score."""


class TeacherShape(NamedTuple):
    """Numbers in a `TeacherOutput` of one image."""

    layers: int
    patches: int
    channels: int
    attention: bool


def l2_normalize(tokens: Tensor) -> Tensor:
    """norm(v) = v / ||v||_2 over the channels, in float32 (eq. 3)."""
    return F.normalize(tokens.float(), dim=-1)


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


def attended(distances: Tensor, attention: Tensor) -> Tensor:
    """Distances of patches [B, N] times N a_p / sum_q a_q of their attention a [B, N]: [B, N].

    Their mean over the patches is the mean of the distances weighted by the attention, sum_p a_p d_p / sum_p a_p.
    """
    return distances * (attention / attention.mean(dim=1, keepdim=True))
