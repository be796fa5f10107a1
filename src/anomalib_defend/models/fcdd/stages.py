"""The one stage of a training: normal images towards zero, and others, where there are any, away from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomalib_defend.files.names import to_text
from anomalib_defend.models.components.other_images import find_images, other_batches
from anomalib_defend.models.components.stage import Optimizers, Stage, Step

from .torch_model import FCDDModel, augment

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 1e-6
DROPS = (400 / 600, 500 / 600)  # of the epochs, after which the learning rate drops to a tenth


class HypersphereStage(Stage):
    """Half of the normal images of a batch make room for outliers, if there is a folder of them."""

    name, length = "hypersphere", "epochs"
    loss_name, advice = "hypersphere_loss", "lower lr, or train with --trainer.precision 32"
    model: FCDDModel

    def __init__(self, model: FCDDModel, arguments: Mapping[str, Any]) -> None:
        super().__init__(model, arguments)
        self._outliers: list[Path] = []
        self._batches: Iterator[Batch] = iter(())
        self._epoch = -1  # that the iterator is of

    def plan(self, run: Run) -> int:
        """Its epochs.

        Raises:
            ValueError: If the outliers cannot be used.
        """
        folder = self.arguments["outlier_dir"]
        if folder is None:
            logger.warning(
                "Without outliers nothing keeps the network from mapping every image to zero: name a folder of images "
                "that are surely not normal, of any kind (--model.outlier_dir)."
            )
        else:
            self._outliers = find_images("outlier_dir", folder, run.data_paths, subfolders=True)
            logger.info("%d outliers from %s.", len(self._outliers), to_text(str(folder)))
        return super().plan(run)

    def optimizers(self) -> Optimizers:
        """Adam, whose learning rate drops to a tenth after two thirds and again after five sixths of the epochs."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, self.arguments["lr"], weight_decay=WEIGHT_DECAY)
        drops = [round(drop * self.arguments["epochs"]) for drop in DROPS]
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: 0.1 ** sum(epoch >= drop for drop in drops)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def step(self, batch: Batch, run: Run) -> Step:
        """Loss of a batch in which each image is an outlier with probability 1/2."""
        images = batch.image
        anomalous = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self._outliers:
            if self._epoch != run.epoch:
                self._epoch, self._batches = run.epoch, other_batches(run, self._outliers)
            outliers = next(self._batches).image[: len(images)]
            anomalous = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(anomalous[:, None, None, None], outliers, images)
        return Step(self.model.loss(augment(images), anomalous))

    def close(self, run: Run, failed: bool) -> None:
        """Let go of the outliers."""
        del run, failed
        self._batches, self._epoch = iter(()), -1
