"""The one stage of a training: distillation of the frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from anomalib_defend.models.components.stage import Optimizers, Stage, Step
from anomalib_defend.models.components.teacher_pass import TeacherPass

from .torch_model import KDADModel, VitForm

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run

HALVINGS = [10, 20]  # epochs of the ViT form
VIT_EPOCHS, VGG_EPOCHS = 10, 200  # the latter the paper's for CIFAR-10


class DistillStage(Stage):
    """Train the cloner to see normal images as the teacher does."""

    name, length = "distillation", "epochs"
    loss_name, advice = "distill_loss", "lower lr, or train with --trainer.precision 32"
    model: KDADModel

    def __init__(self, model: KDADModel, arguments: Mapping[str, Any]) -> None:
        super().__init__(model, arguments)
        self._teacher = TeacherPass(arguments["teacher_cache"], model.teacher_shape)

    def plan(self, run: Run) -> int:
        """The form's own epochs by default."""
        own = VIT_EPOCHS if isinstance(self.model, VitForm) else VGG_EPOCHS
        return 1 if run.is_trial else self.arguments["epochs"] or own

    def prepare(self, run: Run, epochs: int) -> None:
        """Decide where the teacher's output is kept."""
        self._teacher.announce(run, epochs)

    def optimizers(self) -> Optimizers:
        """Adam; for the ViT form AdamW, halved after 10 and 20 epochs."""
        cloner, lr = self.model.cloner.parameters(), self.arguments["lr"]
        if not isinstance(self.model, VitForm):
            return Adam(cloner, lr)
        optimizer = AdamW(cloner, lr, weight_decay=0.01)
        return {"optimizer": optimizer, "lr_scheduler": MultiStepLR(optimizer, HALVINGS, gamma=0.5)}

    def enter(self, run: Run) -> None:
        """Let the teacher see the training images once, wherever a run was resumed."""
        model = self.model
        if self._teacher.open(run, model.teacher, [type(model).__name__]):
            self._teacher.fill(run, model.teacher, lambda batch: model.teacher_output(batch.image))

    def step(self, batch: Batch, run: Run) -> Step:
        """Distance of cloner and teacher."""
        teacher = self._teacher.read(batch.image_path, batch.image.device)
        return Step(self.model.distill_step(batch.image, teacher))

    def close(self, run: Run, failed: bool) -> None:
        """Let go of the teacher's output."""
        self._teacher.close(run, failed)
