"""What a trainer may be told: limits that leave nothing to train, or do not fit the stages, are refused at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer

logger = logging.getLogger(__name__)


def refuse_to_train_nothing(trainer: Trainer) -> None:
    """Lightning would end such a run at once, without a checkpoint and without a word.

    Raises:
        ValueError: If a limit of the trainer is 0, or all of its time is over.
    """
    limits = [name for name in ("limit_train_batches", "max_epochs", "max_steps") if getattr(trainer, name) == 0]
    reasons = [f"trainer.{name}=0" for name in limits] + ["trainer.max_time, which is over,"] * trainer.should_stop
    if reasons:
        msg = f"{reasons[0]} leaves nothing to train: leave it out, or raise it."
        raise ValueError(msg)


def check_validation_limit(trainer: Trainer) -> None:
    """Lightning refuses a share of less than one batch in the first epoch that is validated, however late that is.

    Raises:
        MisconfigurationException: Lightning's own, before the first step.
    """
    if trainer.enable_validation and trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True


def check_max_epochs(max_epochs: int | None, lengths: Mapping[str, int], first_epoch: int = 0) -> int:
    """The one policy for ``trainer.max_epochs``: unset, the total, or fewer that leave the last stage an epoch.

    Args:
        max_epochs: What the user gave.
        lengths: Epochs of the stages, by the argument that sets them.
        first_epoch: In which the first of them began.

    Raises:
        ValueError: If the limit would cut the last stage off, or asks for more epochs than the stages have.
    """
    *_, last = lengths
    total = first_epoch + sum(lengths.values())
    least = total - lengths[last] + 1
    if max_epochs is None or not least <= max_epochs <= total:
        what = " + ".join(f"{name}={epochs}" for name, epochs in lengths.items())
        msg = (
            f"trainer.max_epochs={max_epochs} does not fit {what}: leave it out, or set it to a number from {least} to "
            f"{total} to stop early. For more epochs, raise model.{last}."
        )
        raise ValueError(msg)
    if max_epochs < total:
        logger.warning(
            "trainer.max_epochs=%d stops the training early, before the end of its schedule of %d epochs. To train for "
            "fewer epochs, lower model.%s.",
            max_epochs,
            total,
            last,
        )
    return max_epochs


def check_processes(trainer: Trainer) -> None:
    """Several processes need a share of the images each: Lightning gives them all of them, or fails, without a word.

    Raises:
        ValueError: If every process would see all images, or one of them none in a prediction.
    """
    count = trainer.world_size
    if count == 1:
        return
    if not trainer._accelerator_connector.use_distributed_sampler:
        msg = (
            f"trainer.use_distributed_sampler=false gives each of the {count} processes all images, so that every one "
            "counts several times: leave it out. A data loader's own DistributedSampler is kept."
        )
        raise ValueError(msg)
    if not trainer.predicting:
        return
    found = trainer.predict_loop._data_source.dataloader()
    loaders = [loader for loader in _as_list(found) if isinstance(loader, DataLoader)]
    sizes = [len(loader.dataset) for loader in loaders]  # type: ignore[arg-type] # Lightning needs it, too
    if 0 < min(sizes, default=count) < count:
        msg = f"{min(sizes)} image(s) are too few for {count} processes: predict with fewer devices (trainer.devices)."
        raise ValueError(msg)


def _as_list(loaders: object) -> list[object]:
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def check_precision(trainer: Trainer) -> None:
    """Weights in another precision than float32 are none of anomalib's: its batches stay float32, whatever the trainer.

    Raises:
        ValueError: If the trainer would convert them.
    """
    if trainer.precision in {"64-true", "16-true", "bf16-true"}:
        msg = (
            f"trainer.precision={trainer.precision} converts the weights, but anomalib's images stay float32: take "
            "bf16-mixed or 16-mixed, which compute in half precision, or leave it out."
        )
        raise ValueError(msg)
