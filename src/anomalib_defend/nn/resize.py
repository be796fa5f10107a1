"""Antialiased resizing that exports: two matrix products with computed weights, for images of any size; and its check.

Shapes: B images of C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_size(images: Tensor, size: tuple[int, int], model: str = "", *, or_larger: bool = False) -> None:
    """See that images [B, C, H, W] have the size that a network takes.

    Args:
        images: What reaches it.
        size: Height and width.
        model: What takes them, for the message; by default a model for ``image_size``.
        or_larger: It takes larger images, too.

    Raises:
        ValueError: If they have another.
    """
    found = tuple(images.shape[-2:])
    if any(side < least for side, least in zip(found, size, strict=True)) if or_larger else found != size:
        model = model or f"a model for image_size={size}"
        msg = f"Images of {found} reach {model}: its pre_processor has to resize them."
        raise ValueError(msg)


def antialiased_resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as torchvision does (bilinear, antialiased), [B, C, H, W] -> [B, C, *size]."""
    images = _product(interpolation_weights(images.shape[-2], size[0], images), images)
    return _product(interpolation_weights(images.shape[-1], size[1], images), images.mT).mT


def interpolation_weights(old: int, new: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of antialiased linear interpolation from ``old`` to ``new`` samples, times 256: whole part and rest.

    Each new sample is a mean of old ones under a triangle whose half-width is one sample of the coarser of both grids.

    OpenVINO computes floating point in bfloat16 by default, which cannot tell columns beyond the 256th apart, and whose
    rounded weights would leave stripes. So everything but the small rest is computed in whole numbers: positions in
    units of 1 / (2 old new) of the side, weights in 256ths, which bfloat16 holds exactly.

    OpenVINO's CPU plugin computes int64 as int32, too. The largest number is the sum of a row, 2 old^2 / new: it stays
    below 2^31 for sides up to 2^15 sqrt(new), 185,000 samples at an input of 32.

    Returns:
        Two matrices [new, old] whose sum's rows sum to 256.
    """
    samples = (2 * torch.arange(old, device=like.device) + 1) * new
    centres = (2 * torch.arange(new, device=like.device) + 1) * old
    half_width = (torch.full((), 2, device=like.device) * old).clamp_min(2 * new)
    weights = (half_width - (samples - centres[:, None]).abs()).clamp_min(0)
    total = weights.sum(dim=1, keepdim=True)
    weights = 256 * weights  # after the sum, which would overflow otherwise
    whole = weights.div(total, rounding_mode="trunc")
    return whole.to(like.dtype), (weights - whole * total).to(like.dtype) / total.to(like.dtype)


def _product(weights: tuple[Tensor, Tensor], images: Tensor) -> Tensor:
    # one product over both parts, so that the result is rounded once
    return torch.cat(weights, dim=1) @ torch.cat([images, images], dim=-2) / 256
