"""What every model of this package does alike: evaluation, checkpoints and exports."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from anomalib import LearningType
from anomalib.data import Batch, InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.engine.plugins.checkpoint_io import AnomalibCheckpointIO
from anomalib.metrics import F1Score
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import ImageVisualizer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_defend import __version__
from anomalib_defend.nn.vit import plain_attention
from anomalib_defend.post_processing import AUROC, PredictionTable

from .checkpoints import (
    VERSION_KEY,
    AtomicCheckpointIO,
    differing,
    read_checkpoint,
    verify_components,
    verify_content,
    verify_shapes,
)
from .export import calibration_images, complete_export, quantize
from .guard import check_scores, check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Callback
    from typing_extensions import Self

logger = logging.getLogger(__name__)

ONNX_OPSET = 18  # what torch's exporter writes; anomalib's default of 14 makes it try, and fail, to convert down


class NoveltyDetectorMixin(AnomalibModule if TYPE_CHECKING else object):  # type: ignore[misc]
    """Comes before ``AnomalibModule`` in a model's bases, which anomalib wants to see there directly.

    The model names what is its own: ``landmark``, ``architecture``, ``untrained`` and ``build``.
    """

    landmark: ClassVar[str]
    """A tensor that the checkpoints of this model hold, and those of no other."""

    architecture: ClassVar[tuple[str, ...]]
    """The arguments that the networks are built from."""

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored, and the way out; empty if nothing is."""
        raise NotImplementedError

    def build(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make ``self.model`` as the arguments and the shapes of a checkpoint's tensors say."""
        raise NotImplementedError

    @property
    def learning_type(self) -> LearningType:
        """Learns from normal images alone."""
        return LearningType.ONE_CLASS

    def setup(self, stage: str) -> None:
        """Write checkpoints that a killed run cannot damage."""
        super().setup(stage)
        if type(self.trainer.strategy.checkpoint_io) in {AnomalibCheckpointIO, TorchCheckpointIO}:  # not the user's own
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def configure_callbacks(self) -> list[Callback]:
        """The components, and the table of predictions."""
        return [*super().configure_callbacks(), PredictionTable()]

    def on_fit_end(self) -> None:
        """Say where the checkpoint is, which `test`, `predict` and `export` ask for."""
        path = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if path:
            logger.info("Checkpoint: %s", path)

    # ---------------------------------------------------------------------------------------------------- evaluation

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Image AUROC of the raw scores and F1 of the labels; those of pixels where there are maps and masks."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """The image beside its heat map; the colours mean the same in all pictures, 1/2 is the threshold."""
        return ImageVisualizer(fields=["image"], overlay_fields=[("image", ["anomaly_map"])])

    def validation_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        return self.predict_step(batch)

    def test_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        return self.predict_step(batch)

    def predict_step(self, batch: Batch, *_args: object, **_kwargs: object) -> Batch:
        """Score a batch.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        predictions = self.model(batch.image)
        check_scores(predictions.pred_score, batch)
        return batch.update(**{name: value for name, value in predictions._asdict().items() if value is not None})

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Pre-process, score and post-process images; an untrained model is refused."""
        if not torch.compiler.is_compiling():
            self.require_training("score images")
        return super().forward(batch, *args, **kwargs)

    def on_test_start(self) -> None:
        """Refuse an untrained model."""
        self.require_training("test")

    def on_predict_start(self) -> None:
        """Refuse an untrained model."""
        self.require_training("predict")

    def require_training(self, action: str) -> None:
        """Refuse to do something with an untrained model.

        Raises:
            RuntimeError: If it is untrained.
        """
        if self.untrained:
            msg = f"Cannot {action}: this {type(self).__name__} {self.untrained}."
            raise RuntimeError(msg)

    # ------------------------------------------------------------------------------------------ checkpoints and export

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save this package's version, too.

        Raises:
            FloatingPointError: If a weight is NaN or infinite: a good checkpoint is never replaced.
        """
        check_weights(checkpoint["state_dict"])
        super().on_save_checkpoint(checkpoint)
        checkpoint[VERSION_KEY] = __version__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the arguments over from the checkpoint, so that none has to be repeated.

        Raises:
            ValueError: If the checkpoint is of another model or version, or its weights hold NaN or infinity.
        """
        verify_content(checkpoint, type(self).__name__, self.landmark, self.architecture)
        verify_components(checkpoint, self._checkpointable_components())
        saved, state = self.saved_arguments(checkpoint), checkpoint["state_dict"]
        changed = {name: value for name, value in saved.items() if self.hparams.get(name) != value}
        self.hparams.update(changed)
        if changed or differing(self.state_dict(), state):
            self.build(state)
        verify_shapes(checkpoint, self.state_dict())
        super().on_load_checkpoint(checkpoint)

    def saved_arguments(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a checkpoint brings."""
        return dict(checkpoint["hyper_parameters"])

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """As in every anomalib model; a file that is no checkpoint is named.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a checkpoint of this model and version, is damaged, or holds code.
        """
        if "://" not in str(checkpoint_path):
            read_checkpoint(checkpoint_path, mmap=True)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; an untrained model is refused."""
        self.require_training("export")
        self.eval()
        with complete_export(Path(export_root)) as folder:
            return Path(export_root) / super().to_torch(folder, *args, **kwargs).relative_to(folder)

    def to_onnx(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; an untrained model is refused."""
        self.require_training("export")
        kwargs.setdefault("opset_version", ONNX_OPSET)
        # torch takes fused attention apart in a way that OpenVINO runs slower
        with complete_export(Path(export_root)) as folder, plain_attention(self):
            path = Path(export_root) / super().to_onnx(folder, *args, **kwargs).relative_to(folder)
        gc.collect()  # torch.export leaves a subclass of this class's name behind, with which bare names are ambiguous
        return path

    def to_openvino(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Export as anomalib does; an untrained model, or too few images to calibrate on, are refused."""
        if kwargs.get("compression_type") == CompressionType.INT8_PTQ:
            calibration_images(kwargs.get("datamodule"))
        with complete_export(Path(export_root)) as folder:
            return Path(export_root) / super().to_openvino(folder, *args, **kwargs).relative_to(folder)

    _post_training_quantization_ov = staticmethod(quantize)
