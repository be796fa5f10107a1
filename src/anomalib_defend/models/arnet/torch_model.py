"""Erase colour and orientation, restore them with a U-Net, score what was restored badly.

Source: Huang et al., "Attribute Restoration Framework for Anomaly Detection", 2019.
Shapes: B images, T erasing transforms, H = W pixels a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

NUM_TRANSFORMS = 4
SIZE_FACTOR = 16  # four poolings


def check_image_size(height: int, width: int) -> None:
    """Check that images can be rotated by 90 degrees and halved four times.

    Raises:
        ValueError: If they cannot; names a size that can.
    """
    if height != width:
        msg = f"image_size={height}x{width} must be square: ARNet rotates images by 90 degrees. Try {height}x{height}."
        raise ValueError(msg)
    if height < SIZE_FACTOR or height % SIZE_FACTOR:
        nearest = SIZE_FACTOR * max(1, round(height / SIZE_FACTOR))
        msg = f"image_size={height}x{width} must be a multiple of {SIZE_FACTOR}: try {nearest}."
        raise ValueError(msg)


def erase(images: Tensor) -> Tensor:
    """Erase colour (mean over the channels), then orientation (rotation by 0, 90, 180 and 270 degrees).

    An image whose channels are equal has no colour to lose: on grey images this is the rotation alone.

    Args:
        images: Images [B, 3, H, W], H = W.

    Returns:
        Erased images [T, B, 1, H, W].
    """
    grey = images.mean(dim=1, keepdim=True)
    # flips and transpositions, which every export format knows
    return torch.stack([grey, grey.flip(-1).mT, grey.flip(-2, -1), grey.flip(-2).mT])


class ARNetModel(nn.Module):
    """Restoration network and score.

    Args:
        width: Channels of the U-Net at full resolution.
        normalize_scores: Weigh each transform's error by the inverse of its mean on the training images.
    """

    train_error: Tensor

    def __init__(self, width: int = 64, normalize_scores: bool = True) -> None:
        super().__init__()
        self.unet = UNet(width)
        self.normalize_scores = normalize_scores
        self.register_buffer("train_error", torch.ones(NUM_TRANSFORMS))  # mean over images, channels and pixels

    def reset(self) -> None:
        """Initialise anew."""
        self.unet.reset()
        self.train_error.fill_(1)

    def difference(self, images: Tensor) -> Tensor:
        """Restored minus original images, f(O_t x) - x: [T, B, 3, H, W], in one pass of the network.

        Raises:
            ValueError: If the images are not square, or their size is no multiple of 16.
        """
        if not torch.compiler.is_compiling():
            check_image_size(*images.shape[-2:])
        restored = self.unet(erase(images).flatten(0, 1))
        return restored.unflatten(0, (NUM_TRANSFORMS, -1)) - images

    def restoration_step(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, the mean squared error, and the mean absolute error of each transform [T], without gradient."""
        difference = self.difference(images)
        return difference.square().mean(), absolute_error(difference.detach()).mean(dim=0)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B] and anomaly map [B, 1, H, W], higher is more novel; the score is the map's mean.

        The map is the absolute restoration error, averaged over the channels and, divided by ``train_error``, over the
        transforms.
        """
        errors = self.difference(images).abs().mean(dim=2, keepdim=True)
        if self.normalize_scores:
            errors = errors / self.train_error.clamp_min(1e-8).view(-1, 1, 1, 1, 1)
        maps = errors.mean(dim=0)
        return InferenceBatch(pred_score=maps.mean(dim=(1, 2, 3)), anomaly_map=maps)


def absolute_error(difference: Tensor) -> Tensor:
    """Mean absolute value of differences [T, B, C, H, W] for each image and transform: [B, T]."""
    return difference.abs().mean(dim=(2, 3, 4)).T


class UNet(nn.Module):
    """U-Net with four poolings, bilinear upsampling and w-2w-4w-8w-8w channels: [B, 1, H, W] to [B, 3, H, W].

    Args:
        width: w.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        down = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        up = [4 * width, 2 * width, width, width]
        self.down = nn.ModuleList(_double_conv(old, new) for old, new in zip([1, *down], down, strict=False))
        below, skipped = [down[-1], *up], down[-2::-1]
        self.up = nn.ModuleList(
            _double_conv(old + skip, new) for old, skip, new in zip(below, skipped, up, strict=False)
        )
        self.out = nn.Conv2d(width, 3, 3, padding=1)
        self.reset()

    def reset(self) -> None:
        """Initialise anew, as torch does but for the gain of the last batch norm, 2 / sqrt(w).

        The largest curvature of the squared error grows with the norm of what the last convolution sees. With a gain of
        1 and 64 channels it is about 60: at the paper's learning rate of 0.1 the loss explodes within five steps.
        """
        self.apply(_reset)
        *_, last_norm = (module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        nn.init.constant_(last_norm.weight, 2 * self.out.in_channels**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Restore erased images."""
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            images = block(images if index == 0 else F.max_pool2d(images, 2))
            skips.append(images)
        skips.pop()
        for block in self.up:
            images = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
            images = block(torch.cat([skips.pop(), images], dim=1))
        return self.out(images)


def _double_conv(old: int, new: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(old, new, 3, padding=1, bias=False), nn.BatchNorm2d(new), nn.ReLU(inplace=True),
        nn.Conv2d(new, new, 3, padding=1, bias=False), nn.BatchNorm2d(new), nn.ReLU(inplace=True),
    )  # fmt: skip


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        module.reset_parameters()
