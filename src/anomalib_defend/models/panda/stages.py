"""The one stage of a training: the features of the normal images are drawn to their mean, slowly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_defend.models.components.stage import Step
from anomalib_defend.models.components.tune_encoder import TuneEncoder

from .torch_model import PANDAModel

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run


class CompactnessStage(TuneEncoder):
    """Tune the encoder by the distance to the centre."""

    loss_name = "compactness_loss"
    momentum = 0.9
    gradient_clip = 1e-3  # the brake: a step is at most lr times this; weight decay comes on top
    model: PANDAModel

    def step(self, batch: Batch, run: Run) -> Step:
        """Mean squared distance to the centre."""
        return Step(self.model.loss(batch.image))
