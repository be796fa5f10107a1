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
            log_q = log_q - _column_logsumexp(log_q)  # every prototype receives the same mass
            log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)  # every token gives one
        return log_q.exp()


def perplexity(counts: Tensor) -> Tensor:
    """Number of prototypes in effective use, exp(entropy), from 1 (collapse) to K: counts [K] -> scalar."""
    p = counts.float() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


def _column_logsumexp(log_q: Tensor) -> Tensor:
    """Log of the column sums over the tokens of all processes, [T, K] -> [1, K]."""
    if not (dist.is_available() and dist.is_initialized()):
        return log_q.logsumexp(dim=0, keepdim=True)
    largest = log_q.amax(dim=0, keepdim=True)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    total = (log_q - largest).exp().sum(dim=0, keepdim=True)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return largest + total.log()
