"""How a model is trained: its stages, seeds, losses and callbacks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.data import Batch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from anomalib_defend.post_processing import PredictionTable
from anomalib_defend.post_processing.thresholds import forget_threshold

from .checkpoints import LastEpoch
from .contract import Contract
from .encoder_weights import load_pretrained, load_weights
from .guard import LossGuard
from .run_folder import number_latest
from .seeds import seed_epoch
from .stage_bar import stage_progress_bar
from .stage_runner import StageRunner
from .trainer_limits import check_precision, check_processes

if TYPE_CHECKING:
    from lightning.pytorch import Callback


logger = logging.getLogger(__name__)

PLACEHOLDER = "ddp_placeholder"


class Training(Contract):
    """Trains a model in its stages; `StageRunner` says which, and tells the trainer."""

    def configure_callbacks(self) -> list[Callback]:
        """The components, the table of predictions, the stages and their bar, and a checkpoint of every epoch.

        A training begins with the model's own arguments, whatever has been tested or resumed.
        """
        if self._is_fitting and self.trainer.current_epoch == 0 and self._own is not None:
            if self._own.restore(self):  # before the components are asked for their callbacks
                self.model = self.build().to(self.device)
            self._own = None
        self._runner = StageRunner()
        bar = stage_progress_bar(self.trainer, self._runner)  # behind the runner, which decides the stage
        # the user's own table with its options, if there is one; behind the post-processor in every stage
        tables = [callback for callback in self.trainer.callbacks if isinstance(callback, PredictionTable)]
        callbacks = [*super().configure_callbacks(), *(tables[:1] or [PredictionTable()]), self._runner, *bar]
        return [*callbacks, LastEpoch()] if self.trainer.checkpoint_callbacks else callbacks

    def setup(self, stage: str) -> None:
        """Write checkpoints that a killed run cannot damage; at the start of ``fit``, seed and initialise.

        Raises:
            ValueError: If the trainer has a precision that anomalib cannot compute in, or gives processes no shares.
        """
        super().setup(stage)
        check_precision(self.trainer)
        check_processes(self.trainer)
        self._remove_placeholder()  # of a training that failed, after which no teardown is called
        from .checkpoint_io import made_atomic  # noqa: PLC0415 - with anomalib's engine, which is there by now

        self.trainer.strategy.checkpoint_io = made_atomic(self.trainer.strategy.checkpoint_io)
        if stage != TrainerFn.FITTING:
            if self.trainer.is_global_zero:
                number_latest(Path(self.trainer.default_root_dir))
            return
        self._guard, self._first_epoch, self._may_have_threshold = LossGuard(), 0, True  # a checkpoint's
        self._seed_run(self.hparams.get("seed"))
        if self.trainer.current_epoch == 0:  # else this trainer has trained before: it is refused, or resumes
            self.trained_steps.zero_()
            forget_threshold(self.post_processor)
            self.checkpoint_file = None
            for part in self._normality:
                part.reset()
            self.initialize()
        self._runner.begin(self.stages())
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        if isinstance(self.trainer.strategy, DDPStrategy) and not trainable:  # it refuses to wrap such a module
            self.register_parameter(PLACEHOLDER, nn.Parameter(torch.zeros(())))

    def teardown(self, stage: str) -> None:
        """Be as before."""
        super().teardown(stage)
        self._remove_placeholder()

    def _remove_placeholder(self) -> None:
        if hasattr(self, PLACEHOLDER):
            delattr(self, PLACEHOLDER)

    def on_fit_start(self) -> None:
        """Load the encoder's weights, unless a checkpoint has brought them."""
        self.train()  # whatever an export or the user has left
        if self.trainer.ckpt_path is None and self.pretrained_part is not None:
            encoder = getattr(self.model, self.pretrained_part)
            if self.hparams.weights is not None:
                load_weights(encoder, self.hparams.weights, self.hparams.backbone)
            elif self.hparams.pre_trained:
                load_pretrained(encoder, self.hparams.backbone)
        if self.hparams.get("seed") is not None and getattr(self.trainer.datamodule, "seed", 0) is None:
            logger.warning("The data's own random splits differ from run to run: give the datamodule a seed, too.")
        self._seed_epoch(self._first_epoch)  # now, because the data loader may start before the epoch does

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The current stage's."""
        return self._runner.optimizers()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer was told, else as the stage wants it."""
        if gradient_clip_val is None and self._runner.stage.gradient_clip is not None:
            gradient_clip_val, gradient_clip_algorithm = self._runner.stage.gradient_clip, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_start(self) -> None:
        """Draw the random numbers of this epoch, the order of the images included, whatever has happened before."""
        if self.current_epoch > 0 and not self.trainer.fit_loop.is_resuming:  # else the data loader has started already
            self._seed_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End an epoch whose stage has ended; else the weights change, and what is known of them is out of date.

        The one rule about thresholds in a training: they are of the weights that were validated. A checkpoint, an
        export or a table never has one of other weights, whenever and however a training ends.
        """
        del batch, batch_idx
        if self._runner.skips_epoch:
            return -1
        self.checkpoint_file = None
        if self._may_have_threshold:
            forget_threshold(self.post_processor)
            self._may_have_threshold = False
        return None

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        """One step of the stage that the epoch belongs to.

        Raises:
            FloatingPointError: If the loss of the step before is NaN or infinite.
        """
        stage, index = self._runner.stage, self._runner.index
        result = stage.step(batch, self._runner.run)
        self.trained_steps[index] += 1  # decides what may be tested and exported
        if result is None:  # several processes have to have a loss, computed from a parameter
            placeholder = getattr(self, PLACEHOLDER, None)
            return None if placeholder is None else 1.0 * placeholder
        for name, value in {stage.loss_name: result.loss, **result.metrics}.items():
            # the bar shows the last step, which tells sooner than the mean of a long epoch
            self.log(name, value, prog_bar=True, batch_size=len(batch.image))
            self.log(f"{name}_epoch", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch.image))
        where = f"stage {index + 1} ({stage.name}), epoch {self.current_epoch}, batch {batch_idx}"
        self._guard.watch(stage.loss_name, result.loss, batch, where, stage.advice)
        return result.loss

    def on_train_epoch_end(self) -> None:
        """Look at the last loss."""
        self._guard.check()

    def on_validation_start(self) -> None:
        """Look at the last loss before the model is judged and saved."""
        self._guard.check()

    def on_validation_end(self) -> None:
        """Know that there is a threshold of these weights."""
        self._may_have_threshold = True

    def on_fit_end(self) -> None:
        """Say where the checkpoint is, which `test`, `predict` and `export` ask for, and where the best one is."""
        if self.checkpoint_file is not None:
            logger.info("Trained: %s", self.checkpoint_file)
        best = self.trainer.checkpoint_callback
        path = getattr(best, "best_model_path", "")
        if getattr(best, "monitor", None) and path and Path(path) != self.checkpoint_file:
            logger.info("Best by %s: %s", best.monitor, path)

    def _seed_run(self, seed: int | None) -> None:
        """Seed everything; without a seed, draw one that a checkpoint can name."""
        if "seed" not in self.hparams:  # nothing in the model depends on chance
            return
        if seed is None:
            seed = self.trainer.strategy.broadcast(int(torch.randint(2**31, ())))
            logger.info("seed=%d was drawn for this run.", seed)
        self.run_seed = seed
        seed_everything(seed, workers=True, verbose=False)

    def _seed_epoch(self, epoch: int) -> None:
        if self.run_seed is not None:
            seed_epoch(self.run_seed, epoch, self.global_rank)
