"""The one stage of a training: restoring what was erased."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from anomalib_defend.models.components.stage import Optimizers, Stage, Step

from .torch_model import ARNetModel, absolute_error

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run

NUM_LR_STEPS = 10


class RestorationStage(Stage):
    """Restore images from their erased versions."""

    name, length = "restoration", "epochs"
    loss_name, advice = "train_loss", "lower lr, or train with --trainer.precision 32"
    model: ARNetModel

    def __init__(self, model: ARNetModel, arguments: Mapping[str, Any]) -> None:
        super().__init__(model, arguments)
        self._epoch, self._batches = -1, 0  # of the running mean of the errors

    def optimizers(self) -> Optimizers:
        """SGD without momentum, halved after each tenth of the epochs."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.arguments["lr"])
        epochs = self.arguments["epochs"]
        halvings = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 ** (NUM_LR_STEPS * epoch // epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halvings, "interval": "epoch"}}

    def step(self, batch: Batch, run: Run) -> Step:
        """Restore a batch from all its erased versions."""
        images = batch.image
        if self.arguments["random_flip"]:
            flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(flip, images.flip(-1), images)
        loss, error = self.model.restoration_step(images)
        # the epoch's mean so far stands in until the training ends
        if self._epoch != run.epoch:
            self._epoch, self._batches = run.epoch, 0
        self._batches += 1
        self.model.train_error += (error - self.model.train_error) / self._batches
        return Step(loss)

    def complete(self, run: Run) -> None:
        """In the last epoch, measure the errors on the training images as they are scored."""
        if run.in_last_epoch:
            errors = run.images.features(lambda _, batch: self._errors(batch), "Restoration errors", self.model)
            self.model.train_error.copy_(errors.mean(dim=0))

    def _errors(self, batch: Batch) -> torch.Tensor:
        return absolute_error(self.model.difference(batch.image))
