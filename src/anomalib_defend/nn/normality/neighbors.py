"""Distance to the nearest normal images: an exact search as one matrix product, which exports, memory included.

Shapes: M normal images, B images, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Normality


class NearestNeighbors(Normality):
    """Mean squared Euclidean distance to the k nearest normal images.

    Args:
        dim: D.
        num_neighbors: k.
        center: Move the origin to the memory's mean first: distances stay the same, and features of a large norm do
            not cost digits.
    """

    memory: Tensor

    def __init__(self, dim: int, num_neighbors: int, center: bool = False) -> None:
        super().__init__()
        self.num_neighbors, self.center = num_neighbors, center
        self.register_buffer("memory", torch.empty(0, dim))

    @property
    def fitted(self) -> bool:
        """Whether there is a memory."""
        return len(self.memory) > 0

    def fit(self, features: Tensor) -> None:
        """Keep the features [M, D] of the normal images."""
        self.memory = features.detach().float().to(self.memory.device)

    def reset(self) -> None:
        """Forget the normal images."""
        self.memory = self.memory.new_empty(0, self.memory.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Mean squared distance [B] of features [B, D] to the k nearest, higher is more novel."""
        memory = self.memory
        if self.center:
            mean = memory.mean(dim=0)
            features, memory = features - mean, memory - mean
        return neighbor_distance(features, memory, self.num_neighbors)


def neighbor_distance(features: Tensor, memory: Tensor, num_neighbors: int) -> Tensor:
    """Mean squared Euclidean distance of features [B, D] to their nearest ``num_neighbors`` of memory [M, D]: [B].

    Between unit vectors that is twice the cosine distance. A memory of fewer vectors is used whole. In float32, also
    under autocast: half precision would give many images the same distance.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, memory = features.float(), memory.float()
        products = features @ memory.T
        distances = features.square().sum(1, keepdim=True) + memory.square().sum(1) - 2 * products
    nearest = distances.topk(min(num_neighbors, len(memory)), dim=1, largest=False).values
    return nearest.mean(dim=1).clamp_min(0)
