"""`PANDA`: what is its own about the contract that all models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_ranges

from .stages import CompactnessStage
from .torch_model import PANDAModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class PANDA(NoveltyDetectorMixin, AnomalibModule):
    """Nearest normal images in the feature space of an encoder that was tuned to draw them together.

    The last half of the encoder's blocks is trained to bring the normal images' features nearer to their mean, in few
    and tiny steps, so that they keep what they know. The score is the distance to the 2 nearest normal images.

    Source: Reiss, Cohen, Bergman, Hoshen, "PANDA: Adapting Pretrained Features for Anomaly Detection and Segmentation",
    CVPR 2021 (https://arxiv.org/abs/2010.05903). The defaults are the paper's.

    Args:
        backbone: [main] Name of a timm encoder.
        pre_trained: Start from timm's pretrained weights of that name.
        weights: [main] Local .safetensors or .pth file with the encoder's weights, instead of timm's.
        image_size: Input height and width (one number for both); the encoder's own by default.
        epochs: [main] Epochs.
        lr: [main] Learning rate of SGD; the gradient's norm is clipped to 1e-3.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model; there is no heat map.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.center."
    architecture = ("backbone",)
    stage_names = (CompactnessStage.name,)
    own_on_resume = ("epochs",)
    pretrained_part = "encoder"
    has_map = False
    model: PANDAModel

    def __init__(
        self,
        backbone: str = "resnet152.tv_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        epochs: int = 15,
        lr: float = 1e-2,
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(epochs=(epochs, 1, None), lr=(lr, 0, None))
        data = self.input_data(backbone, image_size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> PANDAModel:
        """Encoder, centre and memory."""
        del state  # a memory of any size is loaded
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        return PANDAModel(self.hparams.backbone, size)

    def stages(self) -> list[Stage]:
        """The tuning."""
        return [CompactnessStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Make the networks anew."""
        self.model = self.build().to(self.device)
