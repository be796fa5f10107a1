"""Exact nearest-neighbour search as one matrix product: it exports, memory included."""

from __future__ import annotations

from torch import Tensor


def neighbor_distance(features: Tensor, memory: Tensor, num_neighbors: int) -> Tensor:
    """Mean squared Euclidean distance of features [B, D] to their nearest ``num_neighbors`` of memory [M, D]: [B].

    Between unit vectors that is twice the cosine distance. A memory of fewer vectors is used whole.
    """
    products = features @ memory.T
    distances = features.square().sum(1, keepdim=True) + memory.square().sum(1) - 2 * products
    nearest = distances.topk(min(num_neighbors, len(memory)), dim=1, largest=False).values
    return nearest.mean(dim=1).clamp_min(0)
