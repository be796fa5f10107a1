"""A pre-processor whose antialiased resize survives export.

anomalib strips antialiasing when it exports a model, since the interpolation operator has no portable form: scores of
large photos then differ between engine and exported model. Here the exported graph holds the same resize as two matrix
products with computed interpolation weights, for inputs of any size.
"""

from __future__ import annotations

from typing import Any

import torch
from anomalib.pre_processing import PreProcessor
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize


class ResizeNormalize(PreProcessor):
    """Resize to a fixed size (bilinear, antialiased), then normalise.

    A restored checkpoint changes the transforms in place: anomalib hands the ``Resize`` to the datasets before the
    checkpoint is read, and they must follow it.

    Args:
        image_size: Height and width of the model's input.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(
        self, image_size: tuple[int, int], mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        resize, normalize = Resize(list(image_size), antialias=True), Normalize(list(mean), list(std))
        super().__init__(Compose([resize, normalize]))
        self.resize, self.normalize = resize, normalize
        # the order makes no difference but in bfloat16, where values around zero are rounded less
        self.export_transform = nn.Sequential(normalize, AntialiasedResize(resize))

    def checkpoint_config(self) -> dict[str, Any]:
        """Plain data to rebuild the transforms from."""
        return {
            "image_size": list(self.resize.size),
            "mean": list(self.normalize.mean),
            "std": list(self.normalize.std),
        }

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take size and statistics over, in place."""
        self.resize.size = list(config["image_size"])
        self.normalize.mean = list(config["mean"])
        self.normalize.std = list(config["std"])


class AntialiasedResize(nn.Module):
    """torchvision's antialiased bilinear resize as two matrix products: exportable, for inputs of any size.

    Args:
        resize: The transform whose size is followed.
    """

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        """Resize [B, C, H, W] to [B, C, *size]."""
        height, width = self.resize.size
        images = _product(interpolation_weights(images.shape[-2], height, images), images)
        return _product(interpolation_weights(images.shape[-1], width, images), images.mT).mT


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
