"""How a trainer runs both stages, and that what stage 1 needs is undone whichever way the training ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies import DDPStrategy
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW

from .arguments import plan_epochs

if TYPE_CHECKING:
    from .lightning_model import Defend
    from .torch_model import DefendModel

logger = logging.getLogger(__name__)


def plan_stages(trainer: Trainer, dense: int, distill: int) -> tuple[int, int]:
    """Let the trainer run both stages; the user's own limit is honoured or refused, never replaced.

    Returns:
        The epochs of stage 1 and 2: those given, or for ``fast_dev_run`` one of each, of as many batches as it says.

    Raises:
        ValueError: If the trainer's limit of epochs does not fit, or its strategy cannot train two stages.
    """
    loop = trainer.fit_loop
    if trainer.fast_dev_run:
        dense, distill = min(dense, 1), 1
        loop.epoch_loop.max_steps = -1
        loop.max_epochs = dense + distill
    else:
        other_limit = trainer.max_steps != -1 or any(isinstance(callback, Timer) for callback in trainer.callbacks)
        loop.max_epochs = plan_epochs(dense, distill, loop.max_epochs, other_limit)
    logger.info("Training %d epochs: dense fine-tuning %d, distillation %d.", loop.max_epochs, dense, distill)
    told = getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters")
    if dense and isinstance(trainer.strategy, DDPStrategy) and not told:
        msg = (
            "Each stage trains other parameters, which DDP has to be told: pass "
            "--trainer.strategy ddp_find_unused_parameters_true (or dense_epochs=0)."
        )
        raise ValueError(msg)
    return dense, distill


def make_optimizer(model: DefendModel, dense_lr: float, head_lr: float, student_lr: float) -> AdamW:
    """One AdamW with a group for each stage and part: parameters without gradient are left as they are."""
    groups = [
        {**group, "lr": student_lr, "betas": (0.9, 0.95)}
        for group in param_groups_weight_decay(nn.ModuleList([model.student, model.student_heads]), weight_decay=0.05)
    ]
    blocks = [parameter for parameter in model.teacher.parameters() if parameter.requires_grad]
    if blocks:  # there is a stage 1
        groups += [
            {"params": blocks, "lr": dense_lr, "weight_decay": 1e-2},
            {"params": list(model.head.parameters()), "lr": head_lr, "weight_decay": 1e-2},
        ]
    return AdamW(groups)


class StageSwitch(Callback):
    """Enter the stage of each epoch.

    In stage 1 the student is untrained: no validation, and no early stopping on what it would have logged. Stage 2
    needs no optimizer state of stage 1, which is neither kept in memory nor saved.
    """

    def __init__(self) -> None:
        self._entered: int | None = None  # the epoch
        self._set_aside: dict[str, Any] | None = None  # what the trainer gets back, by attribute

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Defend) -> None:
        """Enter the stage of this epoch."""
        self._enter(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Defend, *_args: object) -> None:
        """Enter the stage of this epoch, where a run was resumed in its middle."""
        self._enter(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Defend, exception: BaseException) -> None:
        """Give the trainer its validation back when a training fails or is interrupted."""
        del pl_module, exception
        self._take_validation_up(trainer)

    def teardown(self, trainer: Trainer, pl_module: Defend, stage: str) -> None:
        """Give the trainer its validation back."""
        del pl_module, stage
        self._take_validation_up(trainer)

    def _enter(self, trainer: Trainer, model: Defend) -> None:
        epoch = trainer.current_epoch
        if self._entered == epoch:
            return
        self._entered = epoch
        model.model.teacher.eval()
        dense, distill = model.stage_epochs
        if model.in_dense_stage:
            self._set_validation_aside(trainer)
            logger.info("Stage 1, dense fine-tuning: epoch %d of %d.", epoch + 1, dense)
        else:
            self._take_validation_up(trainer)
            for parameter in [*model.model.teacher.parameters(), *model.model.head.parameters()]:
                trainer.optimizers[0].state.pop(parameter, None)
            logger.info("Stage 2, distillation: epoch %d of %d.", epoch - dense + 1, distill)

    def _set_validation_aside(self, trainer: Trainer) -> None:
        if self._set_aside is None:
            self._set_aside = {"limit_val_batches": trainer.limit_val_batches, "callbacks": trainer.callbacks}
            trainer.limit_val_batches = 0
            trainer.callbacks = [item for item in trainer.callbacks if not isinstance(item, EarlyStopping)]

    def _take_validation_up(self, trainer: Trainer) -> None:
        if self._set_aside is not None:
            for name, value in self._set_aside.items():
                setattr(trainer, name, value)
            self._set_aside = None
