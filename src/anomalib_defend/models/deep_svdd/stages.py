"""The stages of a training: an autoencoder, then its encoder is pulled to the centre of what it makes of the images."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from anomalib_defend.models.components.stage import Optimizers, Stage, Step

from .torch_model import DeepSVDDModel

if TYPE_CHECKING:
    from anomalib.data import Batch
    from torch import nn

    from anomalib_defend.models.components.run import Run

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 0.5e-6
DROP = 0.1  # of the learning rate, once


class AutoencoderStage(Stage):
    """Pretrain the encoder as half of an autoencoder. There is no score yet: nothing is validated."""

    name, length = "autoencoder", "pretrain_epochs"
    loss_name, advice = "reconstruction_loss", "lower lr, or train with --trainer.precision 32"
    validates = False
    model: DeepSVDDModel

    def optimizers(self) -> Optimizers:
        """Adam, whose learning rate drops after 250 of 350 epochs."""
        drop = round(self.arguments["pretrain_epochs"] * 250 / 350)
        return adam([*self.model.encoder.parameters(), *self.model.decoder.parameters()], self.arguments["lr"], drop)

    def enter(self, run: Run) -> None:
        """Take the range of the normal images' values, unless a checkpoint has brought it."""
        model = self.model
        if not model.value_range.any():
            ranges = run.images.features(lambda _, batch: model.contrast_range(batch.image), "Range of values", model)
            model.value_range.copy_(torch.stack([ranges[:, 0].min(), ranges[:, 1].max()]))

    def step(self, batch: Batch, run: Run) -> Step:
        """Restore a batch."""
        del run
        return Step(self.model.reconstruction_loss(batch.image))


class CenterStage(Stage):
    """Pull the representations of normal images to their mean before this stage."""

    name, length = "one-class", "epochs"
    loss_name, advice = "center_loss", "lower lr, or train with --trainer.precision 32"
    model: DeepSVDDModel

    def optimizers(self) -> Optimizers:
        """Adam for the encoder, whose learning rate drops after a third of the epochs."""
        return adam(self.model.encoder.parameters(), self.arguments["lr"], round(self.arguments["epochs"] / 3))

    def enter(self, run: Run) -> None:
        """Take the centre, unless a checkpoint has brought it: it never moves."""
        model = self.model
        if not model.normality.fitted:
            features = run.images.features(lambda _, batch: model.represent(batch.image), "Centre", model)
            model.normality.fit(features)
            logger.info("The centre is the mean of %d normal images.", len(features))

    def step(self, batch: Batch, run: Run) -> Step:
        """Distance to the centre."""
        del run
        return Step(self.model.center_loss(batch.image))


def adam(parameters: Iterable[nn.Parameter], lr: float, drop: int) -> Optimizers:
    """Adam whose learning rate drops to a tenth after ``drop`` epochs."""
    optimizer = torch.optim.Adam(parameters, lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: DROP if epoch >= drop else 1.0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
