"""Optimal assignment of patch tokens to prototypes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Entropy-regularised assignment of all tokens (of all processes) to prototypes of equal mass.

    Works on logarithms in float32, so that scores of any size, half precision inputs included, stay finite.

    Args:
        scores: Similarity of each token to each prototype, [T, K]; T may differ between processes.
        epsilon: Regularisation.
        iterations: Alternating normalisations.

    Returns:
        Q, [T, K] float32: rows sum to one, columns to (nearly) the same total mass.
    """
    with torch.autocast(scores.device.type, enabled=False):
        log_q = scores.float() / epsilon
        for _ in range(iterations):
            log_q = _column_log_softmax(log_q)  # every prototype receives the same mass
            log_q = log_q.log_softmax(dim=1)  # every token gives one
        return log_q.exp()


def perplexity(counts: Tensor) -> Tensor:
    """Number of prototypes in effective use, exp(entropy), from 1 (collapse) to K: counts [K] -> scalar."""
    p = counts.float() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


def _column_log_softmax(log_q: Tensor) -> Tensor:
    """Normalise each column over the tokens of all processes, [T, K] -> [T, K]."""
    distributed = dist.is_available() and dist.is_initialized()
    largest = log_q.amax(dim=0, keepdim=True)
    if distributed:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    log_q = log_q - largest  # first, while the small differences of large numbers are exact
    total = log_q.exp().sum(dim=0, keepdim=True)
    if distributed:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return log_q - total.log()
