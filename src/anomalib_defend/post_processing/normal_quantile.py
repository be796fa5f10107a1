"""Threshold from normal images alone, and scaling to (0, 1) that keeps the order of scores."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics.aggregation import CatMetric

logger = logging.getLogger(__name__)


class NormalQuantilePostProcessor(PostProcessor):
    """Set the threshold where a share ``target_fpr`` of the normal validation images would be called novel.

    anomalib's default needs novel validation images: with normal ones alone its threshold is their largest score, and
    its scaling clamps, which makes ties and damages AUROC. Here a score s is scaled to

        1/2 + d / (2 (c + |d|))   with   d = s - threshold   and   c = threshold - median of the normal scores,

    which is strictly monotone in s, 1/2 at the threshold and 1/4 for the typical normal image. The scores before
    scaling stay on the batch as ``raw_score``. Maps are scaled the same way, with statistics of the normal images'
    largest and mean map values: at most a share ``target_fpr`` of them gets a predicted mask.

    The share holds on average over validation sets, for any distribution of the scores. With few images a single
    threshold may miss it (docs/reliability.md), and fewer than 1 / ``target_fpr`` - 1 cannot reach it.

    Args:
        target_fpr: Accepted share of normal images that are called novel, in (0, 1).
        **kwargs: As for anomalib's ``PostProcessor``.

    Raises:
        ValueError: If ``target_fpr`` is not in (0, 1).
    """

    def __init__(self, target_fpr: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < target_fpr < 1:
            msg = f"target_fpr={target_fpr} must lie between 0 and 1 (both excluded)."
            raise ValueError(msg)
        self.target_fpr = target_fpr
        for level in ("image", "pixel"):
            self.register_buffer(f"_{level}_scale", torch.tensor(float("nan")))
        # one number an image, for its score and for the largest and the mean value of its map
        self._image_scores: CatMetric = CatMetric()
        self._map_largest: CatMetric = CatMetric()
        self._map_means: CatMetric = CatMetric()
        self._validated = 0  # normal images that the threshold comes from

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "target_fpr")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: object, **kwargs: object
    ) -> None:
        """Collect the scores of the normal images (unlabelled ones count as normal)."""
        del trainer, pl_module, args, kwargs
        normal = torch.ones(len(outputs.image), dtype=torch.bool, device=outputs.image.device)
        if outputs.gt_label is not None:
            normal = ~outputs.gt_label.bool()
        if outputs.pred_score is not None:
            self._image_scores.update(outputs.pred_score[normal])
        if outputs.anomaly_map is not None:
            maps = outputs.anomaly_map[normal].flatten(1)
            self._map_largest.update(maps.amax(dim=1))
            self._map_means.update(maps.mean(dim=1))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute threshold and scale."""
        del trainer, pl_module
        scores, largest, means = map(_collect, (self._image_scores, self._map_largest, self._map_means))
        self._validated = len(scores)
        if len(scores):
            self._set_statistics("image", self._quantile(scores), scores.median())
        if len(largest):
            self._set_statistics("pixel", self._quantile(largest), means.median())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when there were too few normal images for ``target_fpr``."""
        del trainer, pl_module
        if self._validated and not self._allowed_above(self._validated):
            logger.warning(
                "%d normal validation images are too few for target_fpr=%g: the threshold is their largest score, and "
                "%.0f %% of all normal images are expected above it. Validate at least %d: raise the data's "
                "val_split_ratio.",
                self._validated,
                self.target_fpr,
                100 / (self._validated + 1),
                math.ceil(1 / self.target_fpr - 1e-9) - 1,
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so when there is no threshold to label images by."""
        del trainer, pl_module
        if self.enable_thresholding and self.image_threshold.isnan():
            logger.warning("No normal image was validated, so there is no threshold: every image is labelled normal.")

    on_predict_start = on_test_start

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process the output of an exported model: the same numbers as in the engine.

        Raises:
            ValueError: If there is neither score nor map.
        """
        score, maps = predictions.pred_score, predictions.anomaly_map
        if score is None:
            if maps is None:
                msg = "At least one of pred_score or anomaly_map must be provided."
                raise ValueError(msg)
            score = torch.amax(maps, dim=(-2, -1))
        label = mask = None
        if self.enable_thresholding:
            label, mask = self._is_novel(score, "image"), self._is_novel(maps, "pixel")
        if self.enable_normalization:
            score, maps = self._scale(score, "image"), self._scale(maps, "pixel")
        return InferenceBatch(pred_score=score, pred_label=label, anomaly_map=maps, pred_mask=mask)

    def post_process_batch(self, batch: Batch) -> None:
        """Label and scale a batch in place; its scores before scaling stay in ``batch.raw_score``."""
        batch.raw_score = batch.pred_score
        done = self.forward(InferenceBatch(pred_score=batch.pred_score, anomaly_map=batch.anomaly_map))
        for field in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
            if getattr(done, field) is not None:
                setattr(batch, field, getattr(done, field))

    def _allowed_above(self, count: int) -> int:
        """How many of ``count`` validated images and a new one, exchangeable with them, may exceed the threshold."""
        return math.floor((count + 1) * self.target_fpr + 1e-9)

    def _quantile(self, scores: Tensor) -> Tensor:
        """The smallest score that keeps the expected rate of new images above it at ``target_fpr``, if there is one."""
        return scores.sort().values[-max(1, self._allowed_above(len(scores)))]

    def _set_statistics(self, level: str, threshold: Tensor, typical: Tensor) -> None:
        scale = threshold - typical
        # all scores alike: any positive scale keeps the order
        scale = torch.where(scale > 0, scale, threshold.abs().clamp_min(1e-6))
        getattr(self, f"_{level}_threshold").copy_(threshold)
        getattr(self, f"_{level}_scale").copy_(scale)

    def _is_novel(self, values: Tensor | None, level: str) -> Tensor | None:
        """Compare raw values with the threshold, moved by the sensitivity (0.5 leaves it where it is)."""
        if values is None:
            return None
        sensitivity = self.image_sensitivity if level == "image" else self.pixel_sensitivity
        threshold = self.image_threshold if level == "image" else self.pixel_threshold
        if sensitivity == 0.5:
            return (values > threshold) | values.isnan()  # no number is no reason to trust an image
        return (self._scale(values, level) > 1 - sensitivity) | values.isnan()

    def _scale(self, values: Tensor | None, level: str) -> Tensor | None:
        if values is None:
            return None
        threshold = self.image_threshold if level == "image" else self.pixel_threshold
        scale = getattr(self, f"_{level}_scale")
        # without validation images the order is still kept
        distance = values - threshold.nan_to_num(0.0)
        return 0.5 + 0.5 * (distance / (scale.nan_to_num(1.0) + distance.abs()))


def _collect(metric: CatMetric) -> Tensor:
    """The values gathered from all processes, which are forgotten then."""
    values = metric.compute() if metric.update_called else []
    metric.reset()
    return values.flatten() if isinstance(values, Tensor) else torch.empty(0)
