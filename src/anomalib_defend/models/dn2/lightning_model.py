"""`DN2`: the yardstick. One pass over the training images fills the memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Batch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import as_pair, check_ranges
from anomalib_defend.nn.pretrained import load_pretrained, load_weights
from anomalib_defend.nn.vit import data_config
from anomalib_defend.post_processing import NormalQuantilePostProcessor
from anomalib_defend.pre_processing import ResizeNormalize

from .torch_model import DN2Model, Feature

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


class DN2(NoveltyDetectorMixin, MemoryBankMixin, AnomalibModule):
    """Distance to the nearest normal images in the feature space of a frozen pretrained encoder.

    Source: Bergman, Cohen, Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020. Nothing is trained: it is what a
    user would try first, and what every table of this package compares with.

    Args:
        backbone: Name of a timm encoder.
        pre_trained: Take timm's pretrained weights of that name; otherwise, without ``weights``, random ones.
        weights: Local .safetensors or .pth file with the encoder's weights, instead of timm's.
        image_size: Input height and width (one number for both); the encoder's own by default.
        feature: "cls", the encoder's pooled output, or "mean_patch", the mean of a ViT's patch tokens.
        num_neighbors: k; the score is the mean distance to the k nearest.
        normalize: Cosine distance, not the squared Euclidean distance of the original.
        target_fpr: Share of normal images that may be called novel; sets the threshold on the validation images.
        pre_processor: As in every anomalib model.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model; off by default, since there is no heat map.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    landmark = "model.memory"
    architecture = ("backbone", "feature", "num_neighbors", "normalize")
    model: DN2Model
    _is_fitted: torch.Tensor

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        feature: Feature = "cls",
        num_neighbors: int = 2,
        normalize: bool = True,
        target_fpr: float = 0.05,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = False,
    ) -> None:
        check_ranges(num_neighbors=(num_neighbors, 1, None))
        data = data_config(backbone)
        size = as_pair(image_size) or data["image_size"]
        if pre_processor is True:
            pre_processor = ResizeNormalize(size, data["mean"], data["std"])
        if post_processor is True:
            post_processor = NormalQuantilePostProcessor(target_fpr)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self._features: list[torch.Tensor] = []
        self.model = self._build_model()

    def _build_model(self) -> DN2Model:
        size = as_pair(self.hparams.image_size) or data_config(self.hparams.backbone)["image_size"]
        return DN2Model(image_size=size, **{name: self.hparams[name] for name in self.architecture})

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """The image alone: there is no heat map."""
        return ImageVisualizer(fields=["image"], overlay_fields=[])

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the images, in one process: the memory has to be whole."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    # ------------------------------------------------------------------------------------------------------- fitting

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def on_fit_start(self) -> None:
        """Load the encoder's weights and forget an earlier memory."""
        if self.hparams.weights is not None:
            load_weights(self.model.encoder, self.hparams.weights)
        elif self.hparams.pre_trained:
            load_pretrained(self.model.encoder, self.hparams.backbone)
        self._features.clear()
        self._is_fitted.fill_(False)

    def training_step(self, batch: Batch, *_args: object) -> None:
        """Encode a batch of normal images."""
        self._features.append(self.model.encode(batch.image))

    def fit(self) -> None:
        """Make the collected features the memory."""
        self.model.memory = torch.cat(self._features)
        self._features.clear()
        logger.info("The memory holds %d images of %d features.", *self.model.memory.shape)

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored; empty once there is a memory."""
        return "" if self._is_fitted else "has no memory of normal images; train it or give a checkpoint (ckpt_path)"

    def build(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make the model anew, with room for as many images as it was trained with."""
        self.model = self._build_model().to(self.device)
        self.model.memory = torch.empty_like(state[self.landmark], device=self.device)
