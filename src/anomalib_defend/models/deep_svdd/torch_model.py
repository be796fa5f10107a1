"""A LeNet that maps normal images near a fixed centre, and the decoder that it is pretrained with.

Source: Ruff et al., "Deep One-Class Classification", ICML 2018 (https://proceedings.mlr.press/v80/ruff18a.html).
Shapes: B images, M training images, H x W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn.normality import Center
from anomalib_defend.nn.resize import check_size

CHANNELS, DIM = (32, 64, 128), 128  # of the paper's network for CIFAR-10
KERNEL = 5
EPS = 1e-4  # of the batch norms
LEAST_CONTRAST = 1e-6  # of an image, which is divided by it
LEAST_CENTER = 0.1  # of a component's distance from 0


def check_image_size(height: int, width: int) -> None:
    """Check that images can be halved three times, and that the code fills the grid that is left.

    Raises:
        ValueError: If not; names sizes that work.
    """
    factor = 2 ** len(CHANNELS)
    cells = (height // factor) * (width // factor)
    if height % factor or width % factor or not cells or DIM % cells:
        msg = (
            f"image_size={height}x{width} does not fit the autoencoder, which unfolds {DIM} numbers to an eighth of "
            "both sides. Sizes that work: 16, 32 (the paper's), 64."
        )
        raise ValueError(msg)


class DeepSVDDModel(nn.Module):
    """Encoder, decoder and centre.

    Args:
        image_size: Height and width of the input.

    Raises:
        ValueError: If the network does not fit that size.
    """

    value_range: Tensor
    """Smallest and largest value of the normal images after contrast normalisation; 0, 0 until they are known."""

    def __init__(self, image_size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        check_image_size(*image_size)
        self.image_size = image_size
        grid = (image_size[0] >> len(CHANNELS), image_size[1] >> len(CHANNELS))
        self.encoder = Encoder(grid)
        self.decoder = Decoder(grid)
        self.normality = DistantCenter()
        self.register_buffer("value_range", torch.zeros(2))

    def contrast_range(self, images: Tensor) -> Tensor:
        """Smallest and largest value of each image [B, 3, H, W] after contrast normalisation: [B, 2]."""
        check_size(images, self.image_size)
        values = normalize_contrast(images).flatten(1)
        return torch.stack([values.amin(dim=1), values.amax(dim=1)], dim=1)

    def _input(self, images: Tensor) -> Tensor:
        check_size(images, self.image_size)
        low, high = self.value_range.unbind()
        return (normalize_contrast(images) - low) / (high - low).clamp_min(LEAST_CONTRAST)

    def represent(self, images: Tensor) -> Tensor:
        """The encoder's output [B, 128] of images [B, 3, H, W] in [0, 1]."""
        return self.encoder(self._input(images))

    def reconstruction_loss(self, images: Tensor) -> Tensor:
        """The autoencoder's squared error, summed over channels and pixels; its mean over the images, a scalar."""
        inputs = self._input(images)
        restored = self.decoder(self.encoder(inputs))
        return (restored.float() - inputs).square().sum(dim=(1, 2, 3)).mean()

    def center_loss(self, images: Tensor) -> Tensor:
        """Mean squared distance to the centre, a scalar."""
        return self.normality(self.represent(images)).mean()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B]: squared distance to the centre, higher is more novel."""
        return InferenceBatch(pred_score=self.normality(self.represent(images)))


def normalize_contrast(images: Tensor) -> Tensor:
    """(x - mean) / mean |x - mean| of each image [B, C, H, W], over channels and pixels; 0 for a constant one."""
    with torch.autocast(images.device.type, enabled=False):
        centred = images.float() - images.float().mean(dim=(1, 2, 3), keepdim=True)
        return centred / centred.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(LEAST_CONTRAST)


class Encoder(nn.Module):
    """Convolutions and a linear layer without biases: with them, a constant output would be the best one.

    Args:
        grid: Height and width that the image is reduced to.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for old, new in pairwise((3, *CHANNELS)):
            convolution = nn.Conv2d(old, new, KERNEL, padding=KERNEL // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(new, eps=EPS, affine=False), nn.LeakyReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(CHANNELS[-1] * grid[0] * grid[1], DIM, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Representations [B, 128]."""
        return self.out(self.layers(images).flatten(1))


class Decoder(nn.Module):
    """The encoder's mirror image; the code goes through a batch norm first.

    Args:
        grid: Height and width that the code is unfolded to.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM, eps=EPS, affine=False)
        self.unfold = nn.Unflatten(1, (DIM // (grid[0] * grid[1]), *grid))
        layers: list[nn.Module] = []
        for old, new in pairwise((DIM // (grid[0] * grid[1]), *reversed(CHANNELS))):
            convolution = nn.ConvTranspose2d(old, new, KERNEL, padding=KERNEL // 2, bias=False)
            layers += [
                convolution,
                nn.BatchNorm2d(new, eps=EPS, affine=False),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=2),
            ]
        self.layers = nn.Sequential(*layers)
        self.out = nn.ConvTranspose2d(CHANNELS[0], 3, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of representations [B, 128]."""
        if len(codes) > 1:
            codes = self.norm(codes)
        else:  # one image has no variance
            codes = F.batch_norm(codes, self.norm.running_mean, self.norm.running_var, eps=EPS)
        return self.out(self.layers(self.unfold(F.leaky_relu(codes)))).sigmoid()


class DistantCenter(Center):
    """A centre whose components keep a distance of 0.1 from 0, which a constant output without biases could reach."""

    def fit(self, features: Tensor) -> None:
        """Take the mean of representations [M, 128], and push components away from 0."""
        super().fit(features)
        sign = torch.where(self.center < 0, -1.0, 1.0)
        self.center = torch.where(self.center.abs() < LEAST_CENTER, LEAST_CENTER * sign, self.center)
