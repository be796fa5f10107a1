"""`ARNet`: training from scratch, checkpoints that need nothing else, and anomalib's evaluation and export."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Batch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from anomalib_defend.models.components import TrainedDetectorMixin
from anomalib_defend.models.components.arguments import UNSET_MAX_EPOCHS, as_pair, check_ranges
from anomalib_defend.models.components.batches import own_batches
from anomalib_defend.post_processing import NormalQuantilePostProcessor
from anomalib_defend.pre_processing import ResizeNormalize

from .torch_model import ARNetModel, absolute_error, check_image_size

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

NUM_LR_STEPS = 10


class ARNet(TrainedDetectorMixin, AnomalibModule):
    """Restoration of erased colour and orientation: novel images are restored badly.

    A U-Net, trained from scratch on the normal images, restores the colour image from its grey version rotated by 0,
    90, 180 and 270 degrees. A step restores all four versions of each image. The score is the mean absolute restoration
    error, each transform's divided by its mean on the training images; the error is the anomaly map, too.

    Source: Huang et al., "Attribute Restoration Framework for Anomaly Detection", 2019. The defaults are the paper's.

    Args:
        image_size: Input height and width (one number for both), equal and a multiple of 16. The paper has 32 for small
            images (CIFAR, Fashion-MNIST) and 256 for MVTec AD.
        width: Channels of the U-Net at full resolution.
        epochs: Epochs; the learning rate is halved after each tenth of them.
        lr: Learning rate of the first tenth.
        random_flip: Flip training images horizontally with probability 1/2 (the paper: on CIFAR only).
        normalize_scores: Divide each transform's error by its mean on the training images.
        target_fpr: Share of normal images that may be called novel; sets the threshold on the validation images.
        seed: Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without it one
            is drawn, logged and saved in the checkpoint.
        pre_processor: As in every anomalib model; images must keep values in [0, 1].
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    landmark = "model.train_error"
    architecture = ("width", "normalize_scores")
    of_this_run = ("epochs",)
    model: ARNetModel
    trained_steps: torch.Tensor

    def __init__(
        self,
        image_size: tuple[int, int] | int = 256,
        width: int = 64,
        epochs: int = 125,
        lr: float = 0.1,
        random_flip: bool = False,
        normalize_scores: bool = True,
        target_fpr: float = 0.05,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
    ) -> None:
        check_ranges(width=(width, 1, None), epochs=(epochs, 1, None), lr=(lr, 0, None))
        size = as_pair(image_size)
        assert size is not None  # noqa: S101 - for the type checker
        check_image_size(*size)
        if pre_processor is True:
            pre_processor = ResizeNormalize(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        if post_processor is True:
            post_processor = NormalQuantilePostProcessor(target_fpr)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = self._build_model()
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.long))

    def _build_model(self) -> ARNetModel:
        return ARNetModel(**{name: self.hparams[name] for name in self.architecture})

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Nothing but the sanity check, which would score an untrained network; the user's epochs are not hidden."""
        return {"num_sanity_val_steps": 0}

    # ------------------------------------------------------------------------------------------------------- fitting

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD without momentum, halved after each tenth of the epochs."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.hparams.lr)
        epochs = self.hparams.epochs
        halvings = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 ** (NUM_LR_STEPS * epoch // epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halvings, "interval": "epoch"}}

    def initialize(self) -> None:
        """Draw the network's weights."""
        self.model.reset()
        self.trained_steps.zero_()

    def on_fit_start(self) -> None:
        """Fix the epochs."""
        self._refuse_finished_engine()
        plan_epochs(self.trainer, self.hparams.epochs)
        self._warn_of_unseeded_data()
        self._seed_first_epoch()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Restore a batch from all its erased versions.

        Raises:
            FloatingPointError: If the loss of the step before is NaN or infinite.
        """
        self.trained_steps += 1
        images = batch.image
        if self.hparams.random_flip:
            flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(flip, images.flip(-1), images)
        loss, error = self.model.restoration_step(images)
        # the epoch's mean so far stands in until the training ends
        self.model.train_error += (error - self.model.train_error) / (batch_idx + 1)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=len(images))
        where = f"epoch {self.current_epoch}, batch {batch_idx}"
        self._guard.watch("train_loss", loss, batch, where, "lower lr, or train with --trainer.precision 32")
        return loss

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """After the last step, before the validation: measure the errors on the training images as they are scored."""
        del outputs, batch, batch_idx
        if self.trainer.is_last_batch and self.current_epoch + 1 == self.trainer.max_epochs:
            self._guard.check()
            self._measure_train_error()

    @torch.no_grad()
    def _measure_train_error(self) -> None:
        """Set ``train_error`` to the means over all training images, with the network in evaluation mode."""
        trainer = self.trainer
        total = torch.zeros(len(self.model.train_error) + 1, device=self.device)  # the last one counts the images
        self.model.eval()
        with trainer.precision_plugin.val_step_context():
            batches = own_batches(trainer, self, trainer.train_dataloader.dataset)
            for _, batch in islice(batches, trainer.num_training_batches):
                total[:-1] += len(batch.image) * absolute_error(self.model.difference(batch.image))
                total[-1] += len(batch.image)
        self.model.train()
        total = trainer.strategy.reduce(total, reduce_op="sum")
        self.model.train_error.copy_(total[:-1] / total[-1])

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored; empty once there was a step."""
        return "" if self.trained_steps > 0 else "has not been trained; train it or give a checkpoint (ckpt_path)"

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def build(self, state: Mapping[str, torch.Tensor]) -> None:
        """Make the network anew."""
        del state
        self.model = self._build_model().to(self.device)

    def saved_arguments(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that a checkpoint brings, to test it or to go on from it with other ``epochs``."""
        saved = super().saved_arguments(checkpoint)
        if self._is_fitting:
            logger.info("Resuming with the checkpoint's arguments and epochs=%d.", saved["epochs"])
        elif self.trained_steps > checkpoint["state_dict"]["trained_steps"]:
            logger.warning("The weights trained so far are replaced by those of ckpt_path, which has fewer steps.")
        return saved


def plan_epochs(trainer: Trainer, epochs: int) -> None:
    """Let the trainer run all epochs, or fewer if its own limit says so.

    Raises:
        ValueError: If the trainer's limit asks for more epochs than the model's schedule has.
    """
    loop = trainer.fit_loop
    if trainer.fast_dev_run:
        return
    other_limit = trainer.max_steps != -1 or any(isinstance(callback, Timer) for callback in trainer.callbacks)
    if loop.max_epochs in {UNSET_MAX_EPOCHS, epochs} or (other_limit and loop.max_epochs in {None, -1}):
        loop.max_epochs = epochs
    elif loop.max_epochs is None or not 0 < loop.max_epochs < epochs:
        msg = (
            f"trainer.max_epochs={loop.max_epochs} does not fit epochs={epochs}: leave it out, or set it to a number "
            f"below {epochs} to stop early. For more epochs, raise model.epochs."
        )
        raise ValueError(msg)
    else:
        logger.warning(
            "trainer.max_epochs=%d stops a schedule of epochs=%d early, with a learning rate that is still high: to "
            "train for fewer epochs, lower model.epochs.",
            loop.max_epochs,
            epochs,
        )
