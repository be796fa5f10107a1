"""`UniAD`: what is its own about the contract that all models share."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_choices, check_ranges

from .stages import RestorationStage
from .torch_model import Score, UniADModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class UniAD(NoveltyDetectorMixin, AnomalibModule):
    """A transformer that restores a frozen encoder's features, and cannot copy what it restores.

    Each place is restored from those that are not near it, from noisy features, by queries that are the same for all
    images. The distance between features and what was restored is the map. It is made for several classes at once.

    Source: You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022
    (https://arxiv.org/abs/2206.03687). The defaults are the paper's for CIFAR-10.

    Args:
        backbone: [main] Name of a timm encoder whose features fall in resolution: EfficientNets, ResNets ...
        pre_trained: Take timm's pretrained weights of that name; otherwise, without ``weights``, random ones.
        weights: [main] Local .safetensors or .pth file with the encoder's weights, instead of timm's.
        image_size: [main] Input height and width (one number for both), multiples of 16 and at least 128.
        epochs: [main] Epochs.
        lr: Learning rate; it drops to a tenth after four fifths of the epochs.
        score: [main] "mean" of the map, or its "max" after averaging over 16 x 16 pixels, for small defects.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.restorer.rows"
    architecture = ("backbone", "score")
    stage_names = (RestorationStage.name,)
    own_on_resume = ("epochs",)
    pretrained_part = "encoder"
    model: UniADModel

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b4.aa_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int = 224,
        epochs: int = 1000,
        lr: float = 1e-4,
        score: Score = "mean",
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(epochs=(epochs, 1, None), lr=(lr, 0, None))
        check_choices(score=(score, get_args(Score)))
        data = self.input_data(backbone, image_size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> UniADModel:
        """Encoder and transformer."""
        del state
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        return UniADModel(image_size=size, **{name: self.hparams[name] for name in self.architecture})

    def stages(self) -> list[Stage]:
        """The restoration."""
        return [RestorationStage(self.model, self.hparams)]

    def initialize(self) -> None:
        """Make the networks anew."""
        self.model = self.build().to(self.device)
