"""A pretrained encoder whose last blocks are tuned, and the nearest normal images in its feature space.

Shapes: B images, D channels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from .encoder import create_encoder
from .normality import Center, NearestNeighbors
from .vit import attention_for

NUM_NEIGHBORS = 2


class TunedEncoder(nn.Module):
    """What is normal is kept twice: the mean before the tuning, which the loss is about, and all features after it.

    The encoder stays in evaluation mode while it is tuned: statistics of batch norms do not change, and nothing is
    dropped. A subclass says how features are compared and which loss there is.

    Args:
        backbone: Name of a timm encoder.
        image_size: Height and width of the input.

    Raises:
        ValueError: If it cannot be built, or has no blocks.
    """

    normalize: ClassVar[bool]
    """Whether features have unit length."""

    encoder: Any  # timm's methods are not those of every module

    def __init__(self, backbone: str, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = create_encoder(backbone, image_size).eval()
        self.blocks = parameter_blocks(self.encoder)
        if len(self.blocks) < 3:
            msg = (
                f"backbone={backbone!r} is a {type(self.encoder).__name__} without blocks of which the last ones could "
                "be tuned: take resnet152, resnet18, tf_efficientnet_lite2, vit_base_patch16_224 ..."
            )
            raise ValueError(msg)
        self.center = Center()
        dim = getattr(self.encoder, "head_hidden_size", self.encoder.num_features)
        # normal images are alike: their features lie close together, far from the origin
        self.normality = NearestNeighbors(dim, NUM_NEIGHBORS, center=True)

    @property
    def num_blocks(self) -> int:
        """Blocks of a ViT, stages of a convolutional network."""
        return len(self.blocks) - 1  # the stem is none

    def train_last(self, blocks: int) -> None:
        """Freeze all but the last blocks, and what follows them."""
        self.encoder.requires_grad_(False)
        for block in self.blocks[len(self.blocks) - blocks :]:
            for parameter in block:
                parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> TunedEncoder:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """The encoder's pooled output [B, D] of images [B, 3, H, W], float32, with a gradient where there is one."""
        with attention_for(self.encoder, images.device):
            tokens = self.encoder.forward_features(images)
        features = self.encoder.forward_head(tokens, pre_logits=True).float()
        return F.normalize(features, dim=-1) if self.normalize else features

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D], as they are kept and compared."""
        return self.features(images)

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """Sum of the squared Euclidean distances to the 2 nearest normal images, [B]; higher is more novel."""
        return NUM_NEIGHBORS * self.normality(self.encode(images))


def parameter_blocks(encoder: Any) -> list[list[nn.Parameter]]:
    """An encoder's parameters, from the stem over its blocks (of a ViT) or stages; a final norm is of the last one.

    None where timm does not say what the blocks are (PiT, MetaFormer ...).
    """
    if not hasattr(encoder, "group_matcher"):
        return []
    groups = group_parameters(encoder, encoder.group_matcher(coarse=True), return_values=True)
    blocks = [groups[number] for number in sorted(groups)]
    if len(blocks) > 1 and all(parameter.ndim == 1 for parameter in blocks[-1]):
        norm = blocks.pop()
        blocks[-1] = blocks[-1] + norm
    return blocks
