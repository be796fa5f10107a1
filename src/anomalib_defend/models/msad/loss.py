"""The losses, as pure functions.

Shapes: B images, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.25


def mean_shifted_loss(first: Tensor, second: Tensor, center: Tensor) -> Tensor:
    """NT-Xent of two views' directions, seen from the centre: t = norm(z - c), and t' is the image's other view.

    L = mean over all 2B of -log( exp(t . t' / T) / sum over all others of exp(t . other / T) ), T = 0.25. A single
    image has no others but its own view: the loss is 0.

    Args:
        first: z of the first view, [B, D].
        second: z of the second view, [B, D].
        center: c, [D].

    Returns:
        A scalar, float32.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = F.normalize(torch.cat([first, second]).float() - center, dim=-1)
        logits = views @ views.T / TEMPERATURE
        itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
        partner = torch.arange(len(views), device=views.device).roll(len(first))
        return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner)


def angular_loss(first: Tensor, second: Tensor, center: Tensor) -> Tensor:
    """Mean over both views of ||z - c||^2, which is 2 - 2 z . c of unit vectors: two [B, D] and [D] -> a scalar."""
    with torch.autocast(first.device.type, enabled=False):
        return (torch.cat([first, second]).float() - center).square().sum(dim=1).mean()
