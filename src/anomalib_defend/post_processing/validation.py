"""The scores of the normal validation images, one after the other, from all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .processes import DataOrder, gather

if TYPE_CHECKING:
    from anomalib.data import Batch
    from torch import Tensor


class ValidationScores:
    """Collects one number an image, for its score and for the largest and the mean value of its map."""

    def __init__(self) -> None:
        self._order = DataOrder()
        self._values: dict[str, list[Tensor]] = {}
        self.start()

    def start(self) -> None:
        """Begin a validation, and forget what an interrupted one has left."""
        self._order.start()
        self._values = {"scores": [], "largest": [], "means": []}

    def add(self, batch: Batch, loaders: object, dataloader_idx: int) -> None:
        """Add the normal images of a batch (unlabelled ones count as normal) that no other process has."""
        if not self._order.keep_once(batch, loaders, dataloader_idx):
            return
        normal = torch.ones(len(batch.image), dtype=torch.bool, device=batch.image.device)
        if batch.gt_label is not None:
            normal = ~batch.gt_label.bool()
        if batch.pred_score is not None:
            self._add("scores", batch.pred_score[normal])
        if batch.anomaly_map is not None:
            maps = batch.anomaly_map[normal].flatten(1)
            self._add("largest", maps.amax(dim=1))
            self._add("means", maps.mean(dim=1))

    def _add(self, name: str, values: Tensor) -> None:
        self._values[name].append(values.detach().float().flatten().cpu())

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, largest and mean values of the maps [n] of all processes; on the CPU."""
        scores, largest, means = (torch.cat([torch.empty(0), *gather(values)]) for values in self._values.values())
        return scores, largest, means
