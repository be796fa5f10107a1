"""A convolutional network with one output at each place, which is near zero where an image is normal.

Source: Liznerski et al., "Explainable Deep One-Class Classification", ICLR 2021 (https://arxiv.org/abs/2007.01760).
Shapes: B images of H x W pixels, (gh, gw) places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torchvision.transforms import v2

from anomalib_defend.nn.resize import check_size
from anomalib_defend.nn.vgg import create_vgg

from .loss import hypersphere_loss, pseudo_huber

FROZEN_POOLS, USED_POOLS = 3, 4  # of a VGG: blocks before the third pooling are frozen, the fourth is left out
SPREAD = 1.5  # standard deviation of a place's Gaussian in the map, in strides of the network
PADDING, JITTER, NOISE = 4, 0.01, 0.001  # of the augmentations


class FCDDModel(nn.Module):
    """The network and its map.

    Args:
        backbone: Name of a timm VGG; its first three blocks are frozen, but for the statistics of their batch norms,
            and its last one takes no part. A small network from scratch if ``None``.
        image_size: Height and width of the input.
        mean: Of each channel, for images in [0, 1]; ``forward`` normalises.
        std: Of each channel, for images in [0, 1].

    Raises:
        ValueError: If the encoder is no VGG, or the size is no multiple of the network's stride.
    """

    encoder: Any  # a VGG's layers are its ``features``
    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self, backbone: str | None, image_size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.image_size = image_size
        if backbone is None:
            self.encoder, self.used, channels = small_network(), None, 128
        else:
            vgg = create_vgg(backbone, image_size)
            pools = [index for index, layer in enumerate(vgg.features) if isinstance(layer, nn.MaxPool2d)]
            self.used = pools[USED_POOLS - 1]
            trained = vgg.features[pools[FROZEN_POOLS - 1] : self.used]
            vgg.requires_grad_(False)
            trained.requires_grad_(True)
            channels = [layer for layer in trained if isinstance(layer, nn.Conv2d)][-1].out_channels
            self.encoder = vgg
        stride = 4 if backbone is None else 2 ** (USED_POOLS - 1)
        if image_size[0] % stride or image_size[1] % stride:
            msg = f"image_size={image_size} must be a multiple of {stride}, the network's stride."
            raise ValueError(msg)
        self.head = nn.Conv2d(channels, 1, 1)
        constants = {
            "mean": torch.tensor(mean)[:, None, None],
            "std": torch.tensor(std)[:, None, None],
            "rows": enlargement(image_size[0], stride),
            "columns": enlargement(image_size[1], stride),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def places(self, images: Tensor) -> Tensor:
        """A at every place, [B, 1, gh, gw], of images [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: If the images have another size than the input.
        """
        check_size(images, self.image_size)
        layers = self.encoder if self.used is None else self.encoder.features[: self.used]
        return pseudo_huber(self.head(layers((images - self.mean) / self.std)))

    def loss(self, images: Tensor, anomalous: Tensor) -> Tensor:
        """Of images [B, 3, H, W] in [0, 1], some of which are anomalous [B], a scalar."""
        return hypersphere_loss(self.places(images).mean(dim=(1, 2, 3)), anomalous)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B], the mean of A, and anomaly map [B, 1, H, W], A enlarged; higher is more novel."""
        places = self.places(images)
        enlarged = self.rows @ places @ self.columns.T
        return InferenceBatch(pred_score=places.mean(dim=(1, 2, 3)), anomaly_map=enlarged)


def small_network() -> nn.Sequential:
    """The paper's network for images of 32 x 32 pixels, up to its last layer: 128 channels, a quarter of each side."""

    def block(old: int, new: int) -> list[nn.Module]:
        return [nn.Conv2d(old, new, 3, padding=1), nn.BatchNorm2d(new), nn.LeakyReLU()]

    return nn.Sequential(
        *block(3, 128), nn.MaxPool2d(2), *block(128, 256), *block(256, 256), nn.MaxPool2d(2),
        nn.Conv2d(256, 128, 3, padding=1),  # nothing between it and the head
    )  # fmt: skip


def enlargement(size: int, stride: int) -> Tensor:
    """What each place adds to each pixel along one side, [size, size / stride]: Gaussians about the places' middles.

    Each pixel's weights sum to 1: a map of equal values keeps them, at the border, too.
    """
    middles = (torch.arange(size // stride) + 0.5) * stride
    distances = (torch.arange(size) + 0.5)[:, None] - middles
    return (-0.5 * (distances / (SPREAD * stride)) ** 2).softmax(dim=1)


def augment(images: Tensor) -> Tensor:
    """Each image [3, H, W] in [0, 1] of a batch shifted by up to 4 pixels, mirrored, and changed a little."""
    jitter = v2.ColorJitter(JITTER, JITTER, JITTER, JITTER)
    height, width = images.shape[-2:]
    padded = F.pad(images, [PADDING] * 4)
    views = []
    for image in padded:
        top, left = (int(torch.randint(2 * PADDING + 1, ())) for _ in range(2))
        view = image[:, top : top + height, left : left + width]
        views.append(jitter(view.flip(-1) if torch.rand(()) < 0.5 else view))
    return torch.stack(views) + NOISE * torch.randn_like(images)
