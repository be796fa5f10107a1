"""Frozen encoder, memory of the normal images' features, and the distance to the nearest of them.

Source: Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020.
Shapes: B images, D channels, M images in the memory.
"""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn.neighbors import neighbor_distance
from anomalib_defend.nn.vit import data_config

Feature = Literal["cls", "mean_patch"]


class DN2Model(nn.Module):
    """Nearest-neighbour distances, found by exact search.

    Args:
        backbone: Name of a timm encoder.
        image_size: Height and width of the input.
        feature: ``cls``, the encoder's pooled output, or ``mean_patch``, the mean of its patch tokens.
        num_neighbors: k.
        normalize: Compare directions (cosine distance) instead of positions (squared Euclidean distance).

    Raises:
        ValueError: If the encoder cannot be built, or has no patch tokens to average.
    """

    memory: Tensor
    encoder: Any  # timm's methods are not those of every module

    def __init__(
        self,
        backbone: str,
        image_size: tuple[int, int],
        feature: Feature = "cls",
        num_neighbors: int = 2,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = create_encoder(backbone, image_size).eval().requires_grad_(False)
        if feature == "mean_patch" and not hasattr(self.encoder, "num_prefix_tokens"):
            msg = f"feature='mean_patch' needs an encoder with patch tokens; backbone={backbone!r} has none. Use 'cls'."
            raise ValueError(msg)
        self.feature, self.num_neighbors, self.normalize = feature, num_neighbors, normalize
        self.register_buffer("memory", torch.empty(0, self.encoder.num_features))

    def train(self, mode: bool = True) -> DN2Model:
        """The encoder is frozen: its dropout and batch norms never switch to training."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W], float32."""
        tokens = self.encoder.forward_features(images)
        if self.feature == "mean_patch":
            features = tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        else:
            features = self.encoder.forward_head(tokens, pre_logits=True)
        return F.normalize(features.float(), dim=-1) if self.normalize else features.float()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B]: mean distance to the nearest neighbours in the memory, higher is more novel."""
        return InferenceBatch(pred_score=neighbor_distance(self.encode(images), self.memory, self.num_neighbors))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        memory = state_dict.get(f"{prefix}memory")
        if memory is not None:  # of as many images as it was trained with
            self.memory = memory.new_empty(memory.shape, device=self.memory.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def create_encoder(backbone: str, image_size: tuple[int, int]) -> nn.Module:
    """Build a timm encoder without classifier, randomly initialised.

    Raises:
        ValueError: If timm does not know the name, or cannot build it for this size.
    """
    native = data_config(backbone)["image_size"]
    kwargs = {} if image_size == native else {"img_size": image_size}
    try:
        return timm.create_model(backbone, num_classes=0, **kwargs)
    except TypeError:  # convolutional encoders take images of any size
        return timm.create_model(backbone, num_classes=0)
    except AssertionError as error:
        msg = f"backbone={backbone!r} cannot be built for image_size={image_size}: {error}"
        raise ValueError(msg) from error
