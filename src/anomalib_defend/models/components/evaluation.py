"""How a model scores images, and that an untrained one does not."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics.evaluator import Evaluator
from anomalib.visualization import ImageVisualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_defend.post_processing import AUROC, F1Score
from anomalib_defend.post_processing.thresholds import lacks_threshold
from anomalib_defend.visualization import NoveltyVisualizer

from .guard import check_scores
from .training import Training

if TYPE_CHECKING:
    pass


logger = logging.getLogger(__name__)

_NEXT = {
    "test": "anomalib predict --data PredictFolder --data.root FOLDER_OF_YOUR_IMAGES",
    "predict": "anomalib export --export_type openvino",
}


class Evaluation(Training):
    """Scores batches, and names metrics and pictures."""

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Image AUROC of the raw scores and F1 of the labels; those of pixels where there are maps and masks."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_", strict=False),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """A picture an image, with score, threshold and verdict."""
        return NoveltyVisualizer()

    @property
    def map_note(self) -> str:
        """A sentence on what the heat map shows, where it is another quantity than the score; pictures have it."""
        return ""

    def on_validation_epoch_start(self) -> None:
        """Count the images from the first one; refuse an untrained model, but for that of a training."""
        self._order.start()
        if not self._is_fitting:
            self.require_training("validate")

    def validation_step(self, batch: Batch, batch_idx: int = 0, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """Score a batch and log the mean score of the normal validation images, each once, as ``val_score``."""
        del batch_idx
        batch = self.predict_step(batch)
        is_own = self._order.keep_once(batch, self.trainer.val_dataloaders, dataloader_idx)
        normal = batch.pred_score if batch.gt_label is None else batch.pred_score[~batch.gt_label.bool()]
        normal = normal if is_own else normal[:0]
        mean = normal.sum() / max(1, len(normal))
        self.log("val_score", mean, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(normal))
        return batch

    def test_step(self, batch: Batch, *_args: object, **_kwargs: object) -> STEP_OUTPUT:
        """Score a batch."""
        return self.predict_step(batch)

    def predict_step(self, batch: Batch, *_args: object, **_kwargs: object) -> Batch:
        """Score a batch.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        return self.with_predictions(batch, self.model(batch.image))

    @staticmethod
    def with_predictions(batch: Batch, predictions: InferenceBatch) -> Batch:
        """Put predictions on their batch.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        check_scores(predictions.pred_score, batch)
        return batch.update(**{name: value for name, value in predictions._asdict().items() if value is not None})

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Pre-process, score and post-process images; an untrained model is refused."""
        if not torch.compiler.is_compiling():
            self.require_training("score images")
        return super().forward(batch, *args, **kwargs)

    def on_fit_end(self) -> None:
        """Say so, too, when the weights that a complete training ends with have no threshold."""
        super().on_fit_end()
        if not self.untrained and lacks_threshold(self.post_processor):
            logger.warning(
                "No normal image was validated with the weights that this training ends with, so there is no "
                "threshold: scores have no label, and exports are refused. To set one: `anomalib-defend threshold "
                "CHECKPOINT --calibrate FOLDER`, a folder of normal images; or train with validation at its end (no "
                "limit_val_batches=0, no val_check_interval that is a time, no stop after the last validation)."
            )

    def on_test_start(self) -> None:
        """Refuse an untrained model."""
        self.require_training("test")

    def on_predict_start(self) -> None:
        """Refuse an untrained model."""
        self.require_training("predict")

    def teardown(self, stage: str) -> None:
        """Say where the checkpoint is, and what to do next: below what Lightning prints of a test's metrics."""
        super().teardown(stage)
        if stage not in _NEXT or not self.trainer.is_global_zero:
            return
        checkpoint = self.checkpoint_file  # of the weights that were tested, which need not be the best ones
        if checkpoint is not None:
            logger.info("Checkpoint: %s", checkpoint)
            module, name = type(self).__module__, type(self).__name__
            model = name if module.startswith("anomalib_defend.") else f"{module}.{name}"
            logger.info("Next: %s --model %s --ckpt_path %s", _NEXT[stage], model, shlex.quote(str(checkpoint)))

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored, and the way out; empty if nothing is."""
        steps = self.trained_steps.tolist()
        if steps[-1] and all(part.fitted for part in self._normality):
            return ""
        if not any(steps):
            return "has not been trained: train it, or give a checkpoint of a finished training (ckpt_path)"
        last = max(index for index, count in enumerate(steps) if count)
        return (
            f"comes out of stage {last + 1} of {len(steps)} ({self.stage_names[last]}, {steps[last]} steps), before "
            "its training was complete: resume it with `anomalib fit --ckpt_path`"
        )

    def require_training(self, action: str) -> None:
        """Refuse to do something with an untrained model.

        Raises:
            RuntimeError: If it is untrained.
        """
        if self.untrained:
            msg = f"Cannot {action}: this {type(self).__name__} {self.untrained}."
            raise RuntimeError(msg)
