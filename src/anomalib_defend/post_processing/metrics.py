"""AUROC of the raw scores."""

from __future__ import annotations

from typing import Any

import torch
from anomalib.data import Batch
from anomalib.metrics import AnomalibMetric
from torch import Tensor
from torchmetrics.classification import BinaryAUROC
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

    def compute(self) -> Tensor:
        """The AUROC; NaN where all images are normal, or all novel."""
        target = dim_zero_cat(self.target)
        if len(target) and (target == target[0]).all():
            return torch.full((), torch.nan, device=target.device)
        return super().compute()


class AUROC(AnomalibMetric, _OrderAUROC):
    """Image AUROC as scikit-learn computes it on the scores before scaling.

    Reads ``raw_score``, which `NormalQuantilePostProcessor` leaves on the batch when it scales the scores (float32
    has too few numbers in [0, 1] to keep every pair of scores apart), else the field that it was given.
    """

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Add a batch."""
        raw = getattr(batch, "raw_score", None) if self.fields[0] == "pred_score" else None
        if raw is None or batch.gt_label is None:
            super().update(batch, *args, **kwargs)
        else:
            _OrderAUROC.update(self, raw, batch.gt_label)
