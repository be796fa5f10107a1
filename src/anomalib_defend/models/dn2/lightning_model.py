"""`DN2`: the nearest-neighbour baseline. One pass over the training images fills the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_choices, check_ranges
from anomalib_defend.models.components.fit_normality import FitNormality

from .torch_model import DN2Model, Feature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class DN2(NoveltyDetectorMixin, AnomalibModule):
    """Distance to the nearest normal images in the feature space of a frozen pretrained encoder.

    Source: Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020
    (https://arxiv.org/abs/2002.10445). Nothing is trained: it is the
    baseline that every table of this package compares with.

    Args:
        backbone: [main] Name of a timm encoder.
        pre_trained: Take timm's pretrained weights of that name; otherwise, without ``weights``, random ones.
        weights: [main] Local .safetensors or .pth file with the encoder's weights, instead of timm's.
        image_size: Input height and width (one number for both); the encoder's own by default.
        feature: [main] "cls", the encoder's pooled output, or "mean_patch", the mean of a ViT's patch tokens.
        num_neighbors: [main] k; the score is the mean distance to the k nearest.
        normalize: Cosine distance, not the squared Euclidean distance of the original.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model; there is no heat map.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.normality.memory"
    architecture = ("backbone", "feature", "num_neighbors", "normalize")
    stage_names = (FitNormality.name,)
    pretrained_part = "encoder"
    has_map = False
    tensors_of_0_1 = {"model.memory": "model.normality.memory"}  # noqa: RUF012 - a constant of the class
    model: DN2Model

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        feature: Feature = "cls",
        num_neighbors: int = 2,
        normalize: bool = True,
        target_fpr: float | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(num_neighbors=(num_neighbors, 1, None))
        check_choices(feature=(feature, get_args(Feature)))
        data = self.input_data(backbone, image_size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> DN2Model:
        """Encoder and memory."""
        del state  # a memory of any size is loaded
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        return DN2Model(image_size=size, **{name: self.hparams[name] for name in self.architecture})

    def stages(self) -> list[Stage]:
        """One pass over the normal images."""
        return [FitNormality(self.model, self.hparams)]

    def migrate(self, checkpoint: dict[str, Any]) -> None:
        """Version 0.1 says in a flag of anomalib's whether there is a memory."""
        fitted = checkpoint["state_dict"].pop("_is_fitted", None)
        if fitted is not None:
            checkpoint["state_dict"]["trained_steps"] = fitted.long().reshape(1)
