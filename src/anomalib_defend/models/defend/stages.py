"""The two stages of a training: dense fine-tuning of the teacher (DEFEND), distillation into the student (MKD)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW

from anomalib_defend.models.components.stage import Stage, Step
from anomalib_defend.models.components.teacher_pass import TeacherPass

from .torch_model import DefendModel

if TYPE_CHECKING:
    from anomalib.data import Batch
    from torch import Tensor

    from anomalib_defend.models.components.run import Run
    from anomalib_defend.nn.distance import TeacherOutput

logger = logging.getLogger(__name__)


class DenseStage(Stage):
    """Stage 1: fine-tune the teacher's last blocks with the dense prototype loss (eq. 1).

    The student is untrained: there is nothing to validate.
    """

    name, length = "dense fine-tuning", "dense_epochs"
    loss_name, advice = "dense_loss", "lower dense_lr and head_lr, or train with --trainer.precision 32"
    validates = False
    model: DefendModel

    def __init__(self, model: DefendModel, arguments: Mapping[str, Any]) -> None:
        super().__init__(model, arguments)
        self._usage: list[Tensor] = []

    @property
    def skipped(self) -> bool:
        """Without epochs."""
        return self.arguments["dense_epochs"] == 0

    def optimizers(self) -> AdamW:
        """AdamW for the teacher's blocks, and for head and prototypes."""
        return dense_optimizer(self.model, self.arguments["dense_lr"], self.arguments["head_lr"])

    def step(self, batch: Batch, run: Run) -> Step:
        """Loss of eq. 1, and how many prototypes are in use."""
        del run
        loss, usage = self.model.dense_step(batch.image)
        self._usage.append(usage)
        return Step(loss, {"prototype_perplexity": usage})

    def end_epoch(self, run: Run) -> None:
        """Warn when the prototypes collapse."""
        del run
        if not self._usage:
            return
        usage, number = torch.stack(self._usage).mean().item(), len(self.model.head.prototypes)
        self._usage.clear()
        if number > 1 and usage < max(1.05, 0.1 * number):
            logger.warning(
                "Only %.1f of %d prototypes are in use: stage 1 has collapsed and may not help. Try a lower dense_lr, "
                "another num_prototypes, or dense_epochs=0.",
                usage,
                number,
            )


class DistillStage(Stage):
    """Stage 2: distil the teacher, now frozen, into the student (eq. 4)."""

    name, length = "distillation", "distill_epochs"
    loss_name, advice = "distill_loss", "lower student_lr, or train with --trainer.precision 32"
    model: DefendModel

    def __init__(self, model: DefendModel, arguments: Mapping[str, Any]) -> None:
        super().__init__(model, arguments)
        self._teacher = TeacherPass(arguments["teacher_cache"], model.teacher_shape)

    def optimizers(self) -> AdamW:
        """AdamW for the student."""
        return distill_optimizer(self.model, self.arguments["student_lr"])

    def prepare(self, run: Run, epochs: int) -> None:
        """Decide where the teacher's output is kept."""
        self._teacher.announce(run, epochs)

    def enter(self, run: Run) -> None:
        """Let the teacher see the training images once, wherever a run was resumed."""
        how = [self.arguments["feature_norm"], self.model.attention_block]
        if self._teacher.open(run, self.model.teacher, how):
            self._teacher.fill(run, self.model.teacher, self._output)

    def _output(self, batch: Batch) -> TeacherOutput:
        return self.model.teacher_output(self.model.whole(batch.image), attend=self.model.is_guided)

    def step(self, batch: Batch, run: Run) -> Step:
        """Loss of eq. 4."""
        del run
        teacher = self._teacher.read(batch.image_path, batch.image.device)
        return Step(self.model.distill_step(batch.image, teacher))

    def close(self, run: Run, failed: bool) -> None:
        """Let go of the teacher's output."""
        self._teacher.close(run, failed)


def dense_optimizer(model: DefendModel, dense_lr: float, head_lr: float) -> AdamW:
    """Of stage 1: AdamW with a group for the teacher's blocks and one for head and prototypes."""
    blocks = [parameter for parameter in model.teacher.parameters() if parameter.requires_grad]
    groups = [
        {"params": blocks, "lr": dense_lr, "weight_decay": 1e-2},
        {"params": list(model.head.parameters()), "lr": head_lr, "weight_decay": 1e-2},
    ]
    return _adamw(groups, model)


def distill_optimizer(model: DefendModel, student_lr: float) -> AdamW:
    """Of stage 2: AdamW without weight decay of biases and norms."""
    from timm.optim import param_groups_weight_decay  # noqa: PLC0415 - brings all of timm's optimisers

    student = nn.ModuleList([model.student, model.student_heads])
    groups = [
        {**group, "lr": student_lr, "betas": (0.9, 0.95)}
        for group in param_groups_weight_decay(student, weight_decay=0.05)
    ]
    return _adamw(groups, model)


def _adamw(groups: list[dict[str, Any]], model: DefendModel) -> AdamW:
    optimizer = AdamW(groups, fused=model.head.prototypes.device.type in {"cpu", "cuda"})
    optimizer._step_supports_amp_scaling = False  # Lightning unscales the gradients, and may clip them then
    return optimizer
