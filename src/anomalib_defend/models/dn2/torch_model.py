"""Frozen encoder, and the distance to the nearest normal images in its feature space.

Source: Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020 (https://arxiv.org/abs/2002.10445).
Shapes: B images, D channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn.encoder import create_encoder
from anomalib_defend.nn.normality import NearestNeighbors

Feature = Literal["cls", "mean_patch"]


class DN2Model(nn.Module):
    """Nearest-neighbour distances, found by exact search.

    Args:
        backbone: Name of a timm encoder.
        image_size: Height and width of the input.
        feature: ``cls``, the encoder's pooled output, or ``mean_patch``, the mean of its patch tokens.
        num_neighbors: k.
        normalize: Compare directions (cosine distance) instead of positions (squared Euclidean distance).

    Raises:
        ValueError: If the encoder cannot be built, or has no patch tokens to average.
    """

    encoder: Any  # timm's methods are not those of every module

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        feature: Feature = "cls",
        num_neighbors: int = 2,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = create_encoder(backbone, image_size).eval().requires_grad_(False)
        if feature == "mean_patch" and not hasattr(self.encoder, "num_prefix_tokens"):
            msg = f"feature='mean_patch' needs an encoder with patch tokens; backbone={backbone!r} has none. Use 'cls'."
            raise ValueError(msg)
        self.feature, self.normalize = feature, normalize
        self.normality = NearestNeighbors(self.encoder.num_features, num_neighbors)

    def train(self, mode: bool = True) -> DN2Model:
        """The encoder is frozen: its dropout and batch norms never switch to training."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W], float32."""
        tokens = self.encoder.forward_features(images)
        if self.feature == "mean_patch":
            features = tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        else:
            features = self.encoder.forward_head(tokens, pre_logits=True)
        return F.normalize(features.float(), dim=-1) if self.normalize else features.float()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B]: mean distance to the nearest neighbours in the memory, higher is more novel."""
        return InferenceBatch(pred_score=self.normality(self.encode(images)))
