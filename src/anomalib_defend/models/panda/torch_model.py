"""Encoder, compactness loss, and the novelty score.

Source: Reiss, Cohen, Bergman, Hoshen, "PANDA: Adapting Pretrained Features for Anomaly Detection and Segmentation",
CVPR 2021 (https://arxiv.org/abs/2010.05903).
"""

from __future__ import annotations

from anomalib.data import InferenceBatch
from torch import Tensor

from anomalib_defend.nn.tuned_encoder import TunedEncoder


class PANDAModel(TunedEncoder):
    """Features as they are; the last half of the blocks trains.

    Args:
        backbone: Name of a timm encoder.
        image_size: Height and width of the input.
    """

    normalize = False

    def __init__(self, backbone: str, image_size: tuple[int, int]) -> None:
        super().__init__(backbone, image_size)
        self.train_last(self.num_blocks - self.num_blocks // 2)

    def loss(self, images: Tensor) -> Tensor:
        """Mean over the images [B, 3, H, W] of ||f - c||^2 / D; a scalar."""
        features = self.features(images)
        return self.center(features).mean() / features.shape[1]

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B] of images [B, 3, H, W]: the 2 smallest ||f - f_m||^2 added, higher is more novel."""
        return InferenceBatch(pred_score=self.score(images))
