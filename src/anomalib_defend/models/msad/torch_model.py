"""Encoder, the mean-shifted contrastive loss, and the novelty score.

Source: Reiss, Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection", AAAI 2023
(https://arxiv.org/abs/2106.03844).
"""

from __future__ import annotations

import torch.nn.functional as F
from anomalib.data import InferenceBatch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from anomalib_defend.nn.tuned_encoder import TunedEncoder

from .loss import angular_loss, mean_shifted_loss

DEEP_RESNET_BLOCKS = 2  # that train: the paper's ResNet-152


class MSADModel(TunedEncoder):
    """Features of unit length.

    Args:
        backbone: Name of a timm encoder.
        image_size: Height and width of the input.
        trainable_blocks: Last blocks or stages that train. All of the encoder if ``None``, but of a deep ResNet the
            last two stages.
        angular: Add the angular loss, for which the centre has unit length, too.

    Raises:
        ValueError: If the encoder has fewer blocks.
    """

    normalize = True

    def __init__(
        self, backbone: str, image_size: tuple[int, int], trainable_blocks: int | None = None, angular: bool = False
    ) -> None:
        super().__init__(backbone, image_size)
        self.angular = angular
        if trainable_blocks is None and isinstance(self.encoder, ResNet):
            deep = isinstance(self.encoder.layer1[0], Bottleneck)
            trainable_blocks = DEEP_RESNET_BLOCKS if deep else None
        if trainable_blocks is not None:
            if not 1 <= trainable_blocks <= self.num_blocks:
                msg = f"trainable_blocks={trainable_blocks}, but {backbone!r} has {self.num_blocks} blocks."
                raise ValueError(msg)
            self.train_last(trainable_blocks)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Loss of two views of each image, [B, 3, H, W] each; a scalar."""
        z, other = self.features(first), self.features(second)
        center = self.center.center
        if not self.angular:
            return mean_shifted_loss(z, other, center)
        center = F.normalize(center, dim=0)
        return mean_shifted_loss(z, other, center) + angular_loss(z, other, center)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B] of images [B, 3, H, W]: the 2 smallest ||z - z_m||^2 added, higher is more novel."""
        return InferenceBatch(pred_score=self.score(images))
