"""The only file that tells a trainer what to do: which stage each epoch belongs to, and what follows from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies import DDPStrategy

from .run import Run
from .trainer_limits import check_max_epochs, check_validation_limit, refuse_to_train_nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.models.components import AnomalibModule
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

    from .stage import Stage

logger = logging.getLogger(__name__)

VALIDATED = ("check_val_every_n_epoch", "val_check_batch")  # epochs and batches from one validation to the next
UNSET_MAX_EPOCHS = 1000  # what Lightning takes for trainer.max_epochs when the user gave none


class StageRunner(Callback):
    """Drives the stages of a model, one after the other, and gives the trainer back as it was however it ends.

    In a stage that does not validate there is no early stopping, either. Each stage has an optimiser of its own: of an
    earlier one nothing is kept in memory or saved.
    """

    def __init__(self) -> None:
        self.stages: Sequence[Stage] = ()
        self.index = 0  # of the current stage
        self._first_epoch = 0  # of the current stage
        self._planned: list[int] = []  # epochs of each stage, at most
        self._ended_after: int | None = None  # epochs of the current stage, if it has ended by itself
        self._entered = -1  # stage
        self._told = -1  # epoch that the log has been told of
        self._batches = 0  # of this run
        self._completed = -1  # after so many batches
        self._steps = 0  # of the optimiser, as last looked at
        self._user_limit: float = 1.0  # limit_train_batches
        self._changed: dict[str, Any] = {}  # what the trainer gets back when it ends, by attribute
        self._set_aside: dict[str, Any] = {}  # what it gets back when a stage validates
        self._run: Run | None = None

    def begin(self, stages: Sequence[Stage]) -> None:
        """Start with the first stage; a checkpoint may follow and move on."""
        self.__init__()  # type: ignore[misc] # nothing is left of an earlier fit
        self.stages = stages
        self.index = next(index for index, stage in enumerate(stages) if not stage.skipped)

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.stages[self.index]

    @property
    def run(self) -> Run:
        """The training."""
        assert self._run is not None  # noqa: S101 - for the type checker
        return self._run

    def where(self, what: str | None = None) -> str:
        """The stage, and the epoch or what else is going on, as the progress bar says it."""
        stages = f"Stage {self.index + 1}/{len(self.stages)} " if len(self.stages) > 1 else ""
        epoch = f"epoch {self.run.epoch - self._first_epoch + 1}/{self._planned[self.index]}"
        return f"{stages}{self.stage.name}, {what or epoch}"

    @property
    def skips_epoch(self) -> bool:
        """Whether the rest of the epoch is not needed."""
        return self._ended_after is not None

    def optimizers(self) -> OptimizerLRScheduler:
        """The current stage's."""
        return self.stage.optimizers()

    @staticmethod
    def make_room(trainer: Trainer, callback: Callback) -> None:
        """Take a callback out, in whose place another one comes."""
        trainer.callbacks.remove(callback)

    def state_dict(self) -> dict[str, Any]:
        """Which stage a checkpoint is of, and what all of them know."""
        return {
            "index": self.index,
            "first_epoch": self._first_epoch,
            "ended_after": self._ended_after,
            "stages": [stage.state_dict() for stage in self.stages],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if not self.stages:  # nothing is trained
            return
        self.index, self._first_epoch = state_dict["index"], state_dict["first_epoch"]
        self._ended_after = state_dict["ended_after"]
        for stage, state in zip(self.stages, state_dict["stages"], strict=True):
            stage.load_state_dict(state)

    # ---------------------------------------------------------------------------------------------- start and end

    def on_fit_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Check what can be checked before any image is read.

        Raises:
            RuntimeError: If the trainer has finished another training.
            ValueError: If its limits leave nothing to train, or its strategy cannot train several stages.
        """
        refuse_to_train_nothing(trainer)
        if trainer.ckpt_path is None and trainer.current_epoch > 0:
            msg = "This engine has finished its training: use a new Engine, or resume with ckpt_path and more epochs."
            raise RuntimeError(msg)
        trained = [stage for stage in self.stages if stage.trains and not stage.skipped]
        told = getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters")
        if len(trained) > 1 and isinstance(trainer.strategy, DDPStrategy) and not told:
            first = trained[0].length
            msg = (
                "Each stage trains other parameters, which DDP has to be told: pass "
                f"--trainer.strategy ddp_find_unused_parameters_true (or {first}=0, where that is possible)."
            )
            raise ValueError(msg)
        if not trainer.checkpoint_callbacks and not trainer.fast_dev_run:
            logger.warning("No checkpoint will be written: the trainer has checkpoints turned off.")
        self._user_limit = trainer.limit_train_batches
        if not any(stage.trains for stage in self.stages):  # one batch says that there are images
            self._change(trainer, "limit_train_batches", 1)

    def on_train_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Plan the epochs of all stages.

        Raises:
            ValueError: If the trainer's limit of epochs does not fit, or a stage lacks what it needs.
        """
        check_validation_limit(trainer)
        self._run = run = Run(trainer, pl_module, self._most_images(trainer))
        loop = trainer.fit_loop
        self._change(trainer, "max_epochs", loop.max_epochs)
        if trainer.fast_dev_run:
            loop.epoch_loop.max_steps = -1
        self._steps = trainer.global_step
        rest = range(self.index, len(self.stages))
        self._planned = [0] * len(self.stages)
        for index in rest:
            if not self.stages[index].skipped:
                self._planned[index] = self.stages[index].plan(run)
        if self._ended_after is not None:
            self._planned[self.index] = self._ended_after
        self._limit_epochs(trainer)
        trained = [index for index in rest if self._planned[index] and not self.stages[index].reused]
        names = [f"{self.stages[index].name} {self._planned[index]}" for index in trained]
        passed = self._pass_over_reused(trainer)
        logger.info("Training %d epochs: %s.", loop.max_epochs - passed, ", ".join(names))
        start = self._first_epoch
        for index in rest:
            epochs = min(self._planned[index], loop.max_epochs - start)
            start += epochs
            if epochs > 0 and index in trained:
                self.stages[index].prepare(run, epochs)

    def on_fit_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Let the stages go."""
        self._close(failed=False)

    def on_exception(self, trainer: Trainer, pl_module: AnomalibModule, exception: BaseException) -> None:
        """Give the trainer back as it was when a training fails or is interrupted."""
        self._close(failed=True)
        self._take_validation_up(trainer)
        self._give_back(trainer)

    def teardown(self, trainer: Trainer, pl_module: AnomalibModule, stage: str) -> None:
        """Give the trainer back as it was."""
        self._take_validation_up(trainer)
        self._give_back(trainer)

    # -------------------------------------------------------------------------------------------- epochs and steps

    def on_train_epoch_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Enter the stage of this epoch."""
        self._give_back(trainer, *VALIDATED)  # where an early stop that was asked for has to wait
        self._enter(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: AnomalibModule, *_args: object) -> None:
        """Enter the stage of this epoch, where a run was resumed in its middle."""
        self._enter(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: AnomalibModule, *_args: object) -> None:
        """Tell the stage of an optimiser step, after which it may end, and have the training's last step validated."""
        self._batches += 1
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self.stage.updated(self.run)
            if self.stage.finished and self._ended_after is None:
                self._planned[self.index] = self._ended_after = trainer.current_epoch + 1 - self._first_epoch
                self._limit_epochs(trainer)
        loop = trainer.fit_loop
        ends = self.skips_epoch or loop.batch_idx + 1 >= trainer.num_training_batches or loop.epoch_loop.done
        if ends and self.index == len(self.stages) - 1 and self.run.in_last_epoch:
            for name in VALIDATED:  # whatever the intervals: the threshold is to be of the weights at the end
                self._change(trainer, name, 1)

    def on_validation_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Complete the model that is judged."""
        if self._entered == self.index:  # a training's validation
            self._complete()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Complete the model where no validation has."""
        self.stage.end_epoch(self.run)
        if self.index == len(self.stages) - 1 and self.run.in_last_epoch:
            self._complete()

    def _complete(self) -> None:
        if self._completed != self._batches:
            with torch.inference_mode(mode=False), torch.no_grad():
                self.run.share_buffers(self.stage.model)
                self.stage.complete(self.run)
            self._completed = self._batches

    def _enter(self, trainer: Trainer) -> None:
        epoch, run = trainer.current_epoch, self.run
        while self.index + 1 < len(self.stages) and epoch >= self._first_epoch + self._planned[self.index]:
            self._advance(trainer, epoch)
        if self._entered != self.index:
            self._entered = self.index
            if self.stage.validates:
                self._take_validation_up(trainer)
            else:
                self._set_validation_aside(trainer)
            self.stage.enter(run)
        if self._told != epoch and len(self.stages) > 1:
            self._told = epoch
            number, of = epoch - self._first_epoch + 1, self._planned[self.index]
            shown = number > 1 and getattr(trainer.progress_bar_callback, "is_shown", False)  # the bar says it
            level = logging.DEBUG if shown else logging.INFO
            logger.log(level, "Stage %d, %s: epoch %d of %d.", self.index + 1, self.stage.name, number, of)

    def _advance(self, trainer: Trainer, epoch: int) -> None:
        """Move on to the next stage."""
        if self._planned[self.index] and not self.stage.reused:
            self.stage.leave(self.run)
        self.index, self._first_epoch, self._ended_after = self.index + 1, epoch, None
        trainer.strategy.setup_optimizers(trainer)
        self._forget_metrics(trainer)

    def _pass_over_reused(self, trainer: Trainer) -> int:
        """Begin in the epoch in which the reused stages would have ended; return its number."""
        progress, epoch = trainer.fit_loop.epoch_progress.current, 0
        for stage, epochs in zip(self.stages, self._planned, strict=True):
            if not stage.reused:
                break
            epoch += epochs
        if epoch:
            progress.ready = progress.started = progress.processed = progress.completed = epoch
        return epoch

    @staticmethod
    def _forget_metrics(trainer: Trainer) -> None:
        """What the last stage has logged is not of this one."""
        for metrics in (trainer.callback_metrics, trainer.progress_bar_metrics):
            metrics.clear()

    # -------------------------------------------------------------------------------------------------- the trainer

    def _limit_epochs(self, trainer: Trainer) -> None:
        loop, planned = trainer.fit_loop, self._planned
        total = self._first_epoch + sum(planned[self.index :])
        asked = self._changed["max_epochs"]
        other_limit = trainer.max_steps != -1 or any(isinstance(callback, Timer) for callback in trainer.callbacks)
        if trainer.fast_dev_run or not any(stage.trains for stage in self.stages):
            asked = None
        elif asked in {UNSET_MAX_EPOCHS, None, -1} and (asked == UNSET_MAX_EPOCHS or other_limit):
            asked = None  # the user gave none: Lightning puts 1000 in, or -1 where another limit is given
        elif self._run is not None and self._ended_after is None:
            lengths = {stage.length: epochs for stage, epochs in zip(self.stages, planned, strict=True) if epochs}
            asked = check_max_epochs(asked, lengths, self._first_epoch)
        loop.max_epochs = total if asked is None else min(total, asked)

    def _most_images(self, trainer: Trainer) -> int | None:
        """Of as many as an epoch of the training sees."""
        limit = self._user_limit
        if limit == 1.0 and isinstance(limit, float):
            return None
        loader = trainer.train_dataloader
        batch = getattr(loader, "batch_size", None) or 1
        images = len(getattr(loader, "dataset", ()))
        batches = -(-images // (batch * trainer.world_size))
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        return min(images, max(1, batches) * batch * trainer.world_size)

    def _change(self, trainer: Trainer, name: str, value: Any) -> None:
        self._changed.setdefault(name, trainer.max_epochs if name == "max_epochs" else getattr(trainer, name))
        if name != "max_epochs":
            setattr(trainer, name, value)

    def _set_validation_aside(self, trainer: Trainer) -> None:
        if not self._set_aside:
            self._set_aside = {"limit_val_batches": trainer.limit_val_batches, "callbacks": trainer.callbacks}
            trainer.limit_val_batches = 0
            trainer.callbacks = [item for item in trainer.callbacks if not isinstance(item, EarlyStopping)]

    def _take_validation_up(self, trainer: Trainer) -> None:
        for name, value in self._set_aside.items():
            setattr(trainer, name, value)
        self._set_aside = {}

    def _give_back(self, trainer: Trainer, *names: str) -> None:
        for name in names or list(self._changed):
            if name in self._changed:
                setattr(trainer.fit_loop if name == "max_epochs" else trainer, name, self._changed.pop(name))

    def _close(self, failed: bool) -> None:
        if self._run is not None:
            for stage in self.stages:
                stage.close(self._run, failed)
            self._run = None
