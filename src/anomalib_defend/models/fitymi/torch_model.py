"""Classifier of normal against fake images, and the nearest-neighbour score in its feature space.

Source: Mirzaei et al., "Fake It Till You Make It: Towards Accurate Near-Distribution Novelty Detection", 2022.
Shapes: B images, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_defend.nn.normality import NearestNeighbors
from anomalib_defend.nn.resize import check_size
from anomalib_defend.nn.vit import create_vit

from .generator import Generator

NUM_NEIGHBORS = 2
DROPOUT = 0.1


def resized_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that images are resized to before the crop: 256 for crops of 224."""
    return round(image_size[0] * 256 / 224), round(image_size[1] * 256 / 224)


class FitymiModel(nn.Module):
    """A ViT with a 2-way head, and the memory of the normal images' features; the generator only while it trains.

    The first half of the blocks is frozen; patch and position embedding, the other blocks, the norm and the head train.

    Args:
        backbone: Name of a timm ViT with a [CLS] token.
        image_size: Height and width of the crops that the encoder sees.

    Raises:
        ValueError: If the encoder cannot be built, or has no [CLS] token.
    """

    generator: Generator | None

    def __init__(self, backbone: str, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.generator = None
        self.image_size = image_size
        self.resized_size = resized_size(image_size)
        self.encoder = create_vit(backbone, image_size)
        if self.encoder.cls_token is None:
            msg = f"backbone={backbone!r} has no [CLS] token, whose feature is classified and compared."
            raise ValueError(msg)
        for block in self.encoder.blocks[: len(self.encoder.blocks) // 2]:
            block.requires_grad_(False)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(self.encoder.num_features, 2)
        self.normality = NearestNeighbors(self.encoder.num_features, NUM_NEIGHBORS, center=True)

    def crop_features(self, crops: Tensor) -> Tensor:
        """[CLS] features after the final norm [B, D] of crops [B, 3, *image_size]; not normalised."""
        # timm keeps the final norm in fc_norm for encoders that pool by the mean; the other one is the identity
        return self.encoder.fc_norm(self.encoder.forward_features(crops))[:, 0]

    def classification_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy on random crops.

        Args:
            images: [B, 3, *resized_size].
            labels: [B], 0 for normal and 1 for fake.
        """
        self._check_size(images)
        features = self.crop_features(random_crops(images, self.image_size))
        return F.cross_entropy(self.classifier(self.dropout(features)), labels)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, D], float32, of the central crops of images [B, 3, *resized_size]."""
        self._check_size(images)
        return self.crop_features(center_crop(images, self.image_size)).float()

    @torch.no_grad()
    def forward(self, images: Tensor) -> InferenceBatch:
        """Novelty score [B]: sum of the 2 smallest squared distances to the memory, higher is more novel."""
        return InferenceBatch(pred_score=NUM_NEIGHBORS * self.normality(self.encode(images)))

    def _check_size(self, images: Tensor) -> None:
        check_size(images, self.resized_size, f"a model that crops {self.image_size} from {self.resized_size}")


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Central crops [B, C, *size] of images [B, C, H, W]."""
    top, left = ((images.shape[axis] - side) // 2 for axis, side in ((-2, size[0]), (-1, size[1])))
    return images[..., top : top + size[0], left : left + size[1]]


def random_crops(images: Tensor, size: tuple[int, int]) -> Tensor:
    """One crop [B, C, *size] of each image [B, C, H, W], uniformly placed and in half of the cases mirrored."""
    count = len(images)
    tops = torch.randint(images.shape[-2] - size[0] + 1, (count,)).tolist()
    lefts = torch.randint(images.shape[-1] - size[1] + 1, (count,)).tolist()
    mirrored = (torch.rand(count) < 0.5).tolist()
    crops = []
    for image, top, left, mirror in zip(images, tops, lefts, mirrored, strict=True):
        crop = image[:, top : top + size[0], left : left + size[1]]
        crops.append(crop.flip(-1) if mirror else crop)
    return torch.stack(crops)
