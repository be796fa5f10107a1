"""Threshold from normal images alone, and scaling to (0, 1) that keeps the order of scores."""

from __future__ import annotations

import logging
from typing import Any

from anomalib.data import Batch
from lightning import LightningModule, Trainer

from .calibrated import CalibratedPostProcessor
from .processes import DataOrder, EachBatch
from .validation import ValidationScores

logger = logging.getLogger(__name__)


def _is_of_training(metric: str) -> bool:
    """Whether a metric is logged in training, by its name: ``train_...``, or a loss that is not ``val_...``."""
    return "val" not in metric and ("train" in metric or "loss" in metric)


class NormalQuantilePostProcessor(EachBatch, CalibratedPostProcessor):
    """Set the threshold where a share ``target_fpr`` of the normal validation images would be called novel.

    anomalib's default needs novel validation images: with normal ones alone its threshold is their largest score, and
    its scaling clamps, which makes ties and damages AUROC. Here a score s is scaled to

        1/2 + d / (2 (c + |d|))   with   d = s - threshold   and   c = threshold - median of the normal scores,

    which is strictly monotone in s, 1/2 at the threshold and 1/4 for the typical normal image. The scores before
    scaling stay on the batch as ``raw_score``. Maps are scaled the same way, with statistics of the normal images'
    largest and mean map values: at most a share ``target_fpr`` of them gets a predicted mask.

    The share holds on average over validation sets, for any distribution of the scores: an image is novel when its
    p-value is ``target_fpr`` at most (docs/thresholds.md). With few images a single threshold may miss it
    (docs/reliability.md), and fewer than 1 / ``target_fpr`` - 1 cannot reach it. The normal scores are kept, sorted, in
    the checkpoint: `set_target_fpr` moves the threshold later.

    What is given here goes before what a checkpoint brings; ``None`` takes the checkpoint's, or the default.

    Args:
        target_fpr: Accepted share of normal images that are called novel, in (0, 1); 0.05 by default.
        image_sensitivity: anomalib's: labels are novel above a score of 1 - ``image_sensitivity``; 0.5 by default. It
            moves no score and promises no rate: prefer ``target_fpr``.
        pixel_sensitivity: The same for maps.
        enable_thresholding: Label images; True by default. Without, a model that was never validated can be exported.
        enable_normalization: Scale scores; True by default.
        **kwargs: As for anomalib's ``PostProcessor``.

    Raises:
        ValueError: If ``target_fpr`` is not in (0, 1).
    """

    def __init__(
        self,
        target_fpr: float | None = None,
        image_sensitivity: float | None = None,
        pixel_sensitivity: float | None = None,
        enable_thresholding: bool | None = None,
        enable_normalization: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target_fpr,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
            enable_thresholding=enable_thresholding,
            enable_normalization=enable_normalization,
            **kwargs,
        )
        self._order = DataOrder()
        self._validation = ValidationScores()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when validation images choose something else than the threshold."""
        del pl_module
        monitors = {getattr(callback, "monitor", None) for callback in getattr(trainer, "callbacks", ())}
        chosen = sorted(str(name) for name in monitors if name and not _is_of_training(str(name)))
        if chosen:
            logger.warning(
                "A callback monitors %s: validation images that choose an epoch look less novel than new ones. "
                "p-values and target_fpr then hold no longer exactly.",
                ", ".join(chosen),
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to collect."""
        del trainer, pl_module
        self._validation.start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Batch,
        batch: object = None,
        batch_idx: int = 0,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the scores of the normal images (unlabelled ones count as normal)."""
        del pl_module, batch, batch_idx
        self._validation.add(outputs, getattr(trainer, "val_dataloaders", None), dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute threshold and scale."""
        del trainer, pl_module
        self.calibrate(*self._validation.gather())
        self._validation.start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when there were too few normal images for ``target_fpr``."""
        del trainer, pl_module
        self.warn_of_few()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when there is no threshold to label images by."""
        del trainer, pl_module
        self.require_moved()
        self._order.start()
        if self._unmoved is not None:
            self.warn_of_few()
        if self.enable_thresholding and self.image_threshold.isnan():
            logger.warning(
                "No normal image was validated with these weights, so there is no threshold: scores have no label. To "
                "set one: `anomalib-defend threshold CHECKPOINT --calibrate FOLDER`, a folder of normal images."
            )

    on_predict_start = on_test_start

    def on_batch(self, trainer: Trainer, batch: Batch, loaders: object, dataloader_idx: int) -> None:
        """Label and scale a batch; what another process has, too, is removed from it."""
        del trainer
        batch.position = self._order.keep_once(batch, loaders, dataloader_idx)
        self.post_process_batch(batch)
