"""The loss of stage 1, as a pure function."""

from __future__ import annotations

from torch import Tensor

TEMPERATURE = 0.1


def dense_loss(similarities: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the crops' prototype predictions with the aligned assignments (eq. 1).

    Args:
        similarities: P = Z C^T per crop and position, [M, R, R, K].
        targets: Labels y, [M, R, R] long, or soft assignments Q, [M, R, R, K].

    Returns:
        Mean over crops and positions, a scalar.
    """
    # written out: torch's own loss over an image is not deterministic on CUDA
    log_p = (similarities.float().movedim(-1, 1) / TEMPERATURE).log_softmax(dim=1)
    if targets.is_floating_point():
        return -(targets.movedim(-1, 1) * log_p).sum(dim=1).mean()
    return -log_p.gather(1, targets.unsqueeze(1)).mean()
