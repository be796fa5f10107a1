"""A pre-processor whose antialiased resize survives export.

anomalib strips antialiasing when it exports a model, since the interpolation operator has no portable form: scores of
large photos then differ between engine and exported model. Here the exported graph holds the same resize as two matrix
products with computed interpolation weights, for inputs of any size.
"""

from __future__ import annotations

from typing import Any

from anomalib.pre_processing import PreProcessor
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_defend.nn.resize import antialiased_resize


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
    """torchvision's antialiased bilinear resize in a form that exports, for inputs of any size.

    Args:
        resize: The transform whose size is followed.
    """

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        """Resize [B, C, H, W] to [B, C, *size]."""
        height, width = self.resize.size
        return antialiased_resize(images, (height, width))
