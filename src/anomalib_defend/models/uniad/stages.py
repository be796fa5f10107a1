"""The one stage of a training: restoring features from noisy ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anomalib_defend.models.components.stage import Optimizers, Stage, Step

from .torch_model import UniADModel

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run

WEIGHT_DECAY = 1e-4
DROP = 800 / 1000  # of the epochs, after which the learning rate drops to a tenth


class RestorationStage(Stage):
    """Restore the features of normal images."""

    name, length = "feature restoration", "epochs"
    loss_name, advice = "restoration_loss", "lower lr, or train with --trainer.precision 32"
    gradient_clip = 0.1
    model: UniADModel

    def optimizers(self) -> Optimizers:
        """AdamW, whose learning rate drops to a tenth after four fifths of the epochs."""
        optimizer = torch.optim.AdamW(self.model.trained, self.arguments["lr"], weight_decay=WEIGHT_DECAY)
        drop = round(DROP * self.arguments["epochs"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.1 if epoch >= drop else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def step(self, batch: Batch, run: Run) -> Step:
        """Restore a batch."""
        del run
        return Step(self.model.restoration_loss(batch.image))
