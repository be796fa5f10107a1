"""Random views of images, as contrastive learning compares them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

BLUR_KERNEL = 13  # three of the largest deviations to each side


def contrastive_view(size: tuple[int, int]) -> v2.Transform:
    """One random view of an image [3, H, W] in [0, 1]: crop, colours, grey, blur, flip.

    Args:
        size: Height and width of the view.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(list(size), scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, sigma=(0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    )


def two_views(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Two random views of each image, drawn image by image from torch's global random state.

    Args:
        images: [B, 3, H, W], normalised by ``mean`` and ``std``.
        mean: Of each channel, for images in [0, 1].
        std: Of each channel, for images in [0, 1].

    Returns:
        Two tensors [B, 3, H, W], normalised alike.
    """
    height, width = images.shape[-2:]
    view, normalize = contrastive_view((height, width)), v2.Normalize(list(mean), list(std))
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    plain = (images * scale + shift).clamp(0, 1)
    first, second = (normalize(torch.stack([view(image) for image in plain])) for _ in range(2))
    return first, second
