"""Which patches the student sees."""

from __future__ import annotations

import torch
from torch import Tensor


def num_kept(num_patches: int, ratio: float) -> int:
    """(1 - ratio) N patches, at least one."""
    return max(1, round(num_patches * (1 - ratio)))


def sample_patches(weights: Tensor, count: int) -> Tensor:
    """Draw patches without replacement with probability proportional to their weight (sec. 3.2).

    The ``count`` largest of log a + Gumbel noise are such a draw. Equal weights draw uniformly.

    Args:
        weights: Non-negative, [B, N], for instance the attention of the teacher's [CLS] token (eq. 2).
        count: Number of patches to keep.

    Returns:
        Indices of the kept patches in ascending order, [B, count] long; all patches in order for ``count`` = N.
    """
    weights = weights.float()
    gumbel = -torch.empty_like(weights).exponential_().log()
    keys = weights.clamp_min(torch.finfo(torch.float32).tiny).log() + gumbel
    return keys.topk(count, dim=1).indices.sort(dim=1).values
