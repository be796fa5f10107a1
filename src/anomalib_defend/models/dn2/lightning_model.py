"""`DN2`: the yardstick. One pass over the training images fills the memory."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import F1Score
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_defend.models.defend.arguments import as_pair
from anomalib_defend.models.defend.export import complete_export, quantize
from anomalib_defend.nn.pretrained import load_pretrained, load_weights
from anomalib_defend.nn.vit import data_config
from anomalib_defend.post_processing import AUROC, NormalQuantilePostProcessor, PredictionTable
from anomalib_defend.pre_processing import ResizeNormalize

from .torch_model import DN2Model, Feature

ONNX_OPSET = 18
logger = logging.getLogger(__name__)


class DN2(MemoryBankMixin, AnomalibModule):
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
        if num_neighbors < 1:
            msg = f"num_neighbors={num_neighbors} must be at least 1."
            raise ValueError(msg)
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
        names = ("backbone", "feature", "num_neighbors", "normalize")
        size = as_pair(self.hparams.image_size) or data_config(self.hparams.backbone)["image_size"]
        return DN2Model(image_size=size, **{name: self.hparams[name] for name in names})

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Image AUROC of the raw scores and F1 of the labels."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """The image alone: there is no heat map."""
        return ImageVisualizer(fields=["image"], overlay_fields=[])

    @property
    def learning_type(self) -> LearningType:
        """Learns from normal images alone."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the images, in one process: the memory has to be whole."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    def configure_callbacks(self) -> list[Callback]:
        """The components, and the table of predictions."""
        return [*super().configure_callbacks(), PredictionTable()]

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

    # ---------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        return batch.update(pred_score=self.model(batch.image).pred_score)

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Pre-process, score and post-process images; a model without memory is refused."""
        if not torch.compiler.is_compiling():
            self._require_memory("score images")
        return super().forward(batch, *args, **kwargs)

    def on_test_start(self) -> None:
        """Refuse a model without memory."""
        self._require_memory("test")

    def on_predict_start(self) -> None:
        """Refuse a model without memory."""
        self._require_memory("predict")

    def _require_memory(self, action: str) -> None:
        if not self._is_fitted:
            msg = (
                f"Cannot {action}: this DN2 has no memory of normal images; train it or give a checkpoint (ckpt_path)."
            )
            raise RuntimeError(msg)

    # ------------------------------------------------------------------------------------------ checkpoints and export

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the arguments over from the checkpoint, so that none has to be repeated.

        Raises:
            ValueError: If the checkpoint is of another model.
        """
        if "model.memory" not in checkpoint["state_dict"]:
            msg = "This is not a checkpoint of DN2: train one with `anomalib train --model DN2 ...`."
            raise ValueError(msg)
        saved = checkpoint.get("hyper_parameters", {})
        changed = {name: value for name, value in saved.items() if self.hparams.get(name) != value}
        self.hparams.update(changed)
        if changed:
            self.model = self._build_model().to(self.device)
        super().on_load_checkpoint(checkpoint)

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; a model without memory is refused."""
        self._require_memory("export")
        self.eval()
        with complete_export(Path(export_root)) as folder:
            return Path(export_root) / super().to_torch(folder, *args, **kwargs).relative_to(folder)

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does (for OpenVINO, too), the memory inside; a model without memory is refused."""
        self._require_memory("export")
        kwargs.setdefault("opset_version", ONNX_OPSET)
        with complete_export(Path(export_root)) as folder:
            path = Path(export_root) / super().to_onnx(folder, *args, **kwargs).relative_to(folder)
        gc.collect()  # torch.export leaves a subclass of this class's name behind, with which bare names are ambiguous
        return path

    _post_training_quantization_ov = staticmethod(quantize)
