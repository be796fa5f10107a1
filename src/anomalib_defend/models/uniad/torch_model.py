"""Features of a frozen encoder, and how well a transformer restores them.

Source: You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022 (https://arxiv.org/abs/2206.03687).
Shapes: B images of H x W pixels, N = gh gw tokens on a grid of H / 16 x W / 16, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn.encoder import create_encoder
from anomalib_defend.nn.resize import check_size

from .transformer import SMALLEST_GRID, Restorer

Score = Literal["mean", "max"]

STRIDE = 16  # of the grid
WIDTH, NUM_LAYERS = 256, 4  # channels of the transformer; layers of its encoder, and of its decoder
NOISE = 20.0
POOL = 16  # pixels that the map is averaged over before its maximum


class UniADModel(nn.Module):
    """Encoder, transformer and the distance between what goes in and what comes out.

    Args:
        backbone: Name of a timm encoder whose features have one resolution for each halving, down to a sixteenth.
        image_size: Height and width of the input, multiples of 16.
        score: The mean of the map, or its largest average over 16 x 16 pixels.

    Raises:
        ValueError: If the encoder has no such features, or the size does not fit.
    """

    encoder: Any  # timm's methods are not those of every module

    def __init__(self, backbone: str, image_size: tuple[int, int], score: Score = "mean") -> None:
        super().__init__()
        grid = (image_size[0] // STRIDE, image_size[1] // STRIDE)
        if image_size[0] % STRIDE or image_size[1] % STRIDE or min(grid) < SMALLEST_GRID:
            least = SMALLEST_GRID * STRIDE
            msg = (
                f"image_size={image_size} must be a multiple of {STRIDE}, at least {least}: a token sees none of the "
                "7 x 7 around it, and must see others."
            )
            raise ValueError(msg)
        self.image_size, self.grid, self.score = image_size, grid, score
        self.encoder = create_encoder(backbone, image_size).eval().requires_grad_(False)
        self.levels, channels = _levels(self.encoder, backbone)
        self.into, self.out = nn.Linear(channels, WIDTH), nn.Linear(WIDTH, channels)
        self.restorer = Restorer(grid, WIDTH, NUM_LAYERS)
        for layer in (self.into, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> UniADModel:
        """The encoder is frozen: its dropout and batch norms never switch to training."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def trained(self) -> list[nn.Parameter]:
        """What is trained."""
        return [*self.into.parameters(), *self.out.parameters(), *self.restorer.parameters()]

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Features of all levels at each place of the grid [B, N, C] of images [B, 3, H, W], float32.

        Raises:
            ValueError: If the images have another size than the input.
        """
        check_size(images, self.image_size)
        levels = self.encoder.forward_intermediates(
            images, indices=self.levels, intermediates_only=True, stop_early=True
        )
        resized = [F.interpolate(level.float(), self.grid, mode="bilinear", align_corners=True) for level in levels]
        return torch.cat(resized, dim=1).flatten(2).mT

    def _restore(self, tokens: Tensor) -> Tensor:
        return self.out(self.restorer(self.into(tokens))).float()

    def restoration_loss(self, images: Tensor) -> Tensor:
        """Mean squared error of the tokens restored from noisy ones, a scalar."""
        tokens = self.tokens(images)
        return (self._restore(add_noise(tokens)) - tokens).square().mean()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B] and anomaly map [B, 1, H, W], higher is more novel.

        The map is the distance of restored and original tokens, enlarged bilinearly.
        """
        tokens = self.tokens(images)
        distances = (self._restore(tokens) - tokens).square().sum(dim=2).sqrt().unflatten(1, self.grid)
        maps = F.interpolate(distances.unsqueeze(1), self.image_size, mode="bilinear", align_corners=True)
        if self.score == "mean":
            scores = maps.mean(dim=(1, 2, 3))
        else:
            scores = F.avg_pool2d(maps, POOL, stride=1).amax(dim=(1, 2, 3))
        return InferenceBatch(pred_score=scores, anomaly_map=maps)


def add_noise(tokens: Tensor) -> Tensor:
    """F + 20 ||f|| / C N(0, I) of each token f of [B, N, C]."""
    scale = NOISE * tokens.norm(dim=2, keepdim=True) / tokens.shape[2]
    return tokens + scale * torch.randn_like(tokens)


def _levels(encoder: Any, backbone: str) -> tuple[list[int], int]:
    """Numbers of the features from half the resolution to a sixteenth, and their channels together."""
    features = list(getattr(encoder, "feature_info", ()))
    used = [index for index, feature in enumerate(features) if 1 < feature["reduction"] <= STRIDE]
    reductions = [features[index]["reduction"] for index in used]
    falls = len(set(reductions)) == len(reductions) > 1 and reductions[-1] == STRIDE
    if not falls or not hasattr(encoder, "forward_intermediates"):
        msg = (
            f"backbone={backbone!r} has no features of falling resolution: UniAD takes a convolutional encoder "
            "(tf_efficientnet_b4.aa_in1k, efficientnet_lite2, resnet18, convnext_tiny ...)."
        )
        raise ValueError(msg)
    return used, sum(features[index]["num_chs"] for index in used)
