"""AUROC of the raw scores, and F1; left out where the images do not say them."""

from __future__ import annotations

from typing import Any

from anomalib.data import Batch
from anomalib.metrics import AnomalibMetric
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, BinaryF1Score
from torchmetrics.utilities import dim_zero_cat


class _OrderAUROC(BinaryAUROC):
    """AUROC that uses nothing but the order of the scores.

    torchmetrics passes a batch through a sigmoid when one of its scores lies outside [0, 1]: batches then are no longer
    comparable with each other, and large scores become ties.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores and labels of any shape."""
        self.preds.append(preds.flatten())
        self.target.append(target.flatten().long())

    def compute(self) -> Tensor | None:
        """The AUROC; None, which is not logged, where all images are normal, or all novel."""
        target = dim_zero_cat(self.target)
        if len(target) and (target == target[0]).all():
            return None
        return super().compute()


class AUROC(AnomalibMetric, _OrderAUROC):
    """Image AUROC as scikit-learn computes it on the scores before scaling.

    Reads ``raw_score``, which `NormalQuantilePostProcessor` leaves on the batch when it scales the scores (float32
    has too few numbers in [0, 1] to keep every pair of scores apart), else the field that it was given.
    """

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Add a batch."""
        if _is_anothers(batch):
            return
        raw = getattr(batch, "raw_score", None) if self.fields[0] == "pred_score" else None
        if raw is None or batch.gt_label is None:
            super().update(batch, *args, **kwargs)
        else:
            _OrderAUROC.update(self, raw, batch.gt_label)


class _KnownF1Score(BinaryF1Score):
    def compute(self) -> Tensor | None:
        """F1; None, which is not logged, where no image is novel: there is nothing to find."""
        return None if self.tp + self.fn == 0 else super().compute()


class F1Score(AnomalibMetric, _KnownF1Score):
    """F1 of the labels; anomalib's calls it 0 where all images are normal, whatever their labels."""

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Add a batch."""
        if not _is_anothers(batch):
            super().update(batch, *args, **kwargs)


def _is_anothers(batch: Batch) -> bool:
    """Whether all of the batch's images were repeated for this process, see ``DataOrder``."""
    return getattr(batch, "position", None) == []
