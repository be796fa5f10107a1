"""The one stage of a training: students learn to do what the teacher's blocks do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anomalib_defend.models.components.fit_normality import fit_normality
from anomalib_defend.models.components.stage import Stage, Step

from .torch_model import TransformalyModel

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run


class ImitationStage(Stage):
    """Imitate the teacher's blocks, each from the teacher's own input of it."""

    name, length = "imitation", "epochs"
    loss_name, advice = "imitation_loss", "lower lr, or train with --trainer.precision 32"
    model: TransformalyModel

    def optimizers(self) -> torch.optim.Adam:
        """Adam, at a constant learning rate."""
        return torch.optim.Adam(self.model.students.parameters(), lr=self.arguments["lr"])

    def step(self, batch: Batch, run: Run) -> Step:
        """The students' errors."""
        del run
        return Step(self.model.imitation_loss(batch.image))

    def complete(self, run: Run) -> None:
        """Take the densities of errors and features."""
        fit_normality(self.model, run)
