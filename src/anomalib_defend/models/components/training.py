"""What every model of this package that is trained does alike: its seeds, what stops it, and how it is resumed."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.trainer.states import TrainerFn

from .checkpoints import LastEpoch
from .guard import LossGuard
from .lightning_model import NoveltyDetectorMixin
from .seeds import seed_epoch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Callback

logger = logging.getLogger(__name__)


class TrainedDetectorMixin(NoveltyDetectorMixin):
    """A `NoveltyDetectorMixin` with a training that can be repeated, and resumed after any epoch.

    The random numbers of an epoch follow from the run's seed and the epoch's number alone. The model adds to what that
    mixin asks for: ``of_this_run`` and ``initialize``. Its ``on_fit_start`` ends with ``_seed_first_epoch``, and its
    ``training_step`` gives each loss to ``_guard``.
    """

    of_this_run: ClassVar[tuple[str, ...]]
    """Arguments that a resumed run takes from the user, unless they are the defaults; others are the checkpoint's."""

    run_seed: int | None = None
    """The seed of this run, given or drawn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = LossGuard()
        self._first_epoch = 0  # of this run

    def initialize(self) -> None:
        """Set all weights and counts to those of a training that has not begun."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        """The components, the table of predictions, and a checkpoint of every epoch."""
        callbacks = super().configure_callbacks()
        return [*callbacks, LastEpoch()] if self.trainer.checkpoint_callbacks else callbacks

    @property
    def _is_fitting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING

    def setup(self, stage: str) -> None:
        """At the start of ``fit``: seed and initialise, whether or not a checkpoint follows."""
        super().setup(stage)
        if stage != TrainerFn.FITTING:
            return
        self._guard, self._first_epoch = LossGuard(), 0
        self._seed_run(self.hparams.seed)
        if self.trainer.current_epoch == 0:  # else this trainer has trained before: on_fit_start decides
            self.initialize()

    def _refuse_finished_engine(self) -> None:
        if self.trainer.ckpt_path is None and self.trainer.current_epoch > 0:
            msg = "This engine has finished its training: use a new Engine, or resume with ckpt_path and more epochs."
            raise RuntimeError(msg)

    def _warn_of_unseeded_data(self) -> None:
        if self.hparams.seed is not None and getattr(self.trainer.datamodule, "seed", 0) is None:
            logger.warning("The data's own random splits differ from run to run: give the datamodule a seed, too.")

    # --------------------------------------------------------------------------------------------------------- seeds

    def _seed_run(self, seed: int | None) -> None:
        """Seed everything; without a seed, draw one that a checkpoint can name."""
        if seed is None:
            seed = self.trainer.strategy.broadcast(int(torch.randint(2**31, ())))
            logger.info("seed=%d was drawn for this run.", seed)
        self.run_seed = seed
        seed_everything(seed, workers=True, verbose=False)

    def _seed_first_epoch(self) -> None:
        """At the end of ``on_fit_start``, because the data loader may start before the epoch does."""
        self._seed_epoch(self._first_epoch)

    def _seed_epoch(self, epoch: int) -> None:
        if self.run_seed is not None:
            seed_epoch(self.run_seed, epoch, self.global_rank)

    def on_train_epoch_start(self) -> None:
        """Draw the random numbers of this epoch, the order of the images included, whatever has happened before."""
        if self.current_epoch > 0 and not self.trainer.fit_loop.is_resuming:  # else the data loader has started already
            self._seed_epoch(self.current_epoch)

    # --------------------------------------------------------------------------------------------------- finite losses

    def on_train_epoch_end(self) -> None:
        """Look at the last loss."""
        self._guard.check()

    def on_validation_start(self) -> None:
        """Look at the last loss before the model is judged and saved."""
        self._guard.check()

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's seed, too.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: a good checkpoint is never replaced.
        """
        self._guard.check()
        super().on_save_checkpoint(checkpoint)
        if self.run_seed is not None:
            checkpoint["hyper_parameters"]["seed"] = self.run_seed

    def saved_arguments(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a checkpoint brings; to resume, ``of_this_run`` may be others, and seed and epoch are set.

        Raises:
            ValueError: If a training cannot go on from it.
        """
        saved = super().saved_arguments(checkpoint)
        if not self._is_fitting:
            return saved
        if "optimizer_states" not in checkpoint:
            msg = "ckpt_path was saved with save_weights_only: it can be tested, but no training goes on from it."
            raise ValueError(msg)
        # where Lightning goes on: in the epoch of the checkpoint, unless it was saved after that epoch's end
        self._first_epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        saved.setdefault("seed", None)
        if saved["seed"] is not None:
            self._seed_run(saved["seed"])
        for name in self.of_this_run:
            if self.hparams[name] != inspect.signature(type(self)).parameters[name].default:
                saved[name] = self.hparams[name]
        return saved
