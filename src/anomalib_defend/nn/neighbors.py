"""Exact nearest-neighbour search as one matrix product: it exports, memory included."""

from __future__ import annotations

import torch
from torch import Tensor


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
