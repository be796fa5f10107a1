"""`DeepSVDD`: what is its own about the contract that all models share."""

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

from .stages import AutoencoderStage, CenterStage
from .torch_model import DeepSVDDModel, check_image_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class DeepSVDD(NoveltyDetectorMixin, AnomalibModule):
    """A small network from scratch that maps normal images near a point: novel ones fall farther from it.

    The network is first half of an autoencoder; then it is trained to map the normal images to the mean of what it made
    of them. It is the historic baseline, and the cheapest model here: minutes on a CPU.

    Source: Ruff et al., "Deep One-Class Classification", ICML 2018
    (https://proceedings.mlr.press/v80/ruff18a.html). The defaults are the paper's for CIFAR-10.

    Args:
        image_size: [main] Input height and width (one number for both): 16, 32 (the paper's) or 64.
        pretrain_epochs: [main] Epochs of the autoencoder.
        epochs: [main] Epochs of the one-class training.
        lr: Learning rate of both; it drops to a tenth after 250 / 350 of the first and a third of the second.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model; images must keep values in [0, 1].
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model; there is no heat map.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.value_range"
    architecture = ("image_size",)
    stage_names = (AutoencoderStage.name, CenterStage.name)
    own_on_resume = ("epochs",)
    has_map = False
    model: DeepSVDDModel

    def __init__(
        self,
        image_size: tuple[int, int] | int = 32,
        pretrain_epochs: int = 350,
        epochs: int = 150,
        lr: float = 1e-4,
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(pretrain_epochs=(pretrain_epochs, 1, None), epochs=(epochs, 1, None), lr=(lr, 0, None))
        size = as_pair(image_size)
        assert size is not None  # noqa: S101 - for the type checker
        check_image_size(*size)
        data = DataConfig(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> DeepSVDDModel:
        """Encoder and decoder."""
        del state
        size = as_pair(self.hparams.image_size)
        assert size is not None  # noqa: S101 - for the type checker
        return DeepSVDDModel(size)

    def stages(self) -> list[Stage]:
        """Autoencoder and one-class training."""
        return [AutoencoderStage(self.model, self.hparams), CenterStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Make the networks anew."""
        self.model = self.build().to(self.device)
