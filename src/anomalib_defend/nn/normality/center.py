"""The mean of the normal images, and how far an image is from it.

Shapes: M normal images, B images, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Normality


class Center(Normality):
    """Squared Euclidean distance to the mean c of the normal images' features, which is computed once."""

    center: Tensor
    """c, [D]; of no length until it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.empty(0))

    @property
    def fitted(self) -> bool:
        """Whether the mean is known."""
        return len(self.center) > 0

    def fit(self, features: Tensor) -> None:
        """Take the mean of the normal images' features [M, D]."""
        self.center = features.double().mean(dim=0).to(self.center)

    def reset(self) -> None:
        """Forget it."""
        self.center = self.center.new_empty(0)

    def forward(self, features: Tensor) -> Tensor:
        """Squared distance [B] of features [B, D], higher is more novel."""
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() - self.center).square().sum(dim=1)
