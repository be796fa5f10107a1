"""`FCDD`: what is its own about the contract that all models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import as_pair, check_ranges
from anomalib_defend.nn.encoder import DataConfig

from .stages import HypersphereStage
from .torch_model import FCDDModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage

SMALL = DataConfig((32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # of the network from scratch


class FCDD(NoveltyDetectorMixin, AnomalibModule):
    """A fully convolutional network that gives zero on normal images, and its output is the heat map.

    With a folder of outliers, images that are surely not normal, of any kind, it learns to tell both apart (FCDD+OE).
    Without one it learns to give zero, which every image may get.

    Source: Liznerski et al., "Explainable Deep One-Class Classification", ICLR 2021
    (https://arxiv.org/abs/2007.01760). The defaults are the paper's for CIFAR-10.

    Args:
        outlier_dir: [main] Folder of outliers, subfolders included; none of the training or test images may be in it.
        backbone: [main] Name of a timm VGG (``vgg11_bn``, the paper's for large images); by default a small network
            from scratch, for images of 32 x 32 pixels.
        pre_trained: Start from timm's pretrained weights of that name.
        weights: [main] Local .safetensors or .pth file with the backbone's weights, instead of timm's.
        image_size: [main] Input height and width (one number for both); the backbone's own, or 32, by default.
        epochs: [main] Epochs.
        lr: Learning rate; it drops to a tenth after two thirds of the epochs, and again after five sixths.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model; images must keep values in [0, 1].
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.head.weight"
    architecture = ("backbone", "image_size")
    stage_names = (HypersphereStage.name,)
    own_on_resume = ("outlier_dir", "epochs")
    model: FCDDModel

    def __init__(
        self,
        outlier_dir: str | None = None,
        backbone: str | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        epochs: int = 600,
        lr: float = 1e-3,
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(epochs=(epochs, 1, None), lr=(lr, 0, None))
        if backbone is None and weights is not None:
            msg = f"weights={weights!r} are of a backbone: name it (backbone=vgg11_bn, vgg16 ...), or leave them out."
            raise ValueError(msg)
        size = as_pair(image_size) or self._data_config(backbone).image_size
        data = DataConfig(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the model normalises
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    @property
    def pretrained_part(self) -> str | None:  # type: ignore[override]
        """The backbone, if there is one."""
        return None if self.hparams.backbone is None else "encoder"

    @classmethod
    def _data_config(cls, backbone: str | None) -> DataConfig:
        return SMALL if backbone is None else cls.input_data(backbone, None)

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> FCDDModel:
        """The network."""
        del state
        data = self._data_config(self.hparams.backbone)
        size = as_pair(self.hparams.image_size) or data.image_size
        return FCDDModel(self.hparams.backbone, size, data.mean, data.std)

    def stages(self) -> list[Stage]:
        """Its one stage."""
        return [HypersphereStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Make the network anew."""
        self.model = self.build().to(self.device)
