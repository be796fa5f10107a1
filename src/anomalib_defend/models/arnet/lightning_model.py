"""`ARNet`: what is its own about the contract that all models share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import as_pair, check_ranges
from anomalib_defend.nn.encoder import DataConfig

from .stages import RestorationStage
from .torch_model import ARNetModel, check_image_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class ARNet(NoveltyDetectorMixin, AnomalibModule):
    """Restoration of erased colour and orientation: novel images are restored badly.

    A U-Net, trained from scratch on the normal images, restores the colour image from its grey version rotated by 0,
    90, 180 and 270 degrees. A step restores all four versions of each image. The score is the mean absolute restoration
    error, each transform's divided by its mean on the training images; the error is the anomaly map, too.

    Source: Huang et al., "Attribute Restoration Framework for Anomaly Detection", 2019
    (https://arxiv.org/abs/1911.10676). The defaults are the paper's.

    Args:
        image_size: [main] Input height and width (one number for both), equal and a multiple of 16. The paper has 32
            for small images (CIFAR, Fashion-MNIST) and 256 for MVTec AD.
        width: [main] Channels of the U-Net at full resolution.
        epochs: [main] Epochs; the learning rate is halved after each tenth of them.
        lr: Learning rate of the first tenth.
        random_flip: Flip training images horizontally with probability 1/2 (the paper: on CIFAR only).
        normalize_scores: Divide each transform's error by its mean on the training images.
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

    distinctive_tensor = "model.train_error"
    architecture = ("width", "normalize_scores")
    stage_names = (RestorationStage.name,)
    own_on_resume = ("epochs",)
    model: ARNetModel

    def __init__(
        self,
        image_size: tuple[int, int] | int = 256,
        width: int = 64,
        epochs: int = 125,
        lr: float = 0.1,
        random_flip: bool = False,
        normalize_scores: bool = True,
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(width=(width, 1, None), epochs=(epochs, 1, None), lr=(lr, 0, None))
        size = as_pair(image_size)
        assert size is not None  # noqa: S101 - for the type checker
        check_image_size(*size)
        data = DataConfig(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> ARNetModel:
        """The restoration network."""
        del state
        return ARNetModel(**{name: self.hparams[name] for name in self.architecture})

    def stages(self) -> list[Stage]:
        """The restoration."""
        return [RestorationStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Draw the network's weights."""
        self.model.reset()

    def migrate(self, checkpoint: dict[str, Any]) -> None:
        """Version 0.1 has a number of steps without dimension."""
        steps = checkpoint["state_dict"].get("trained_steps")
        if steps is not None:
            checkpoint["state_dict"]["trained_steps"] = steps.reshape(1)
