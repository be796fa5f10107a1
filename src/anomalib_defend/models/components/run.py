"""What a stage may ask of the training that it is part of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anomalib.data import AnomalibDataset

from .normal_images import NormalImages, share_buffers

if TYPE_CHECKING:
    import torch
    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer
    from torch import nn

Value = TypeVar("Value")


class Run:
    """A view of trainer and data that cannot change them.

    Args:
        trainer: The trainer.
        model: The Lightning module, for its seed and its pre-processor.
        limit: Most images that one pass over the normal ones sees.
    """

    def __init__(self, trainer: Trainer, model: AnomalibModule, limit: int | None) -> None:
        self._trainer, self._model = trainer, model
        self.images = NormalImages(trainer, model, limit)

    @property
    def seed(self) -> int:
        """From which all random numbers follow."""
        return getattr(self._model, "run_seed", None) or 0

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self._trainer.current_epoch

    @property
    def in_last_epoch(self) -> bool:
        """Whether no epoch follows, as far as is known."""
        trainer = self._trainer
        last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        return trainer.should_stop or last_step or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)

    @property
    def is_trial(self) -> bool:
        """Whether everything is to be as short as can be (``fast_dev_run``)."""
        return bool(self._trainer.fast_dev_run)

    @property
    def batches_per_epoch(self) -> int:
        """In each process."""
        return int(self._trainer.num_training_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""
        return -(-self.batches_per_epoch // self._trainer.accumulate_grad_batches)

    @property
    def precision(self) -> str:
        """As the trainer names it."""
        return str(self._trainer.precision)

    @property
    def accumulated(self) -> int:
        """Batches whose gradients make one step."""
        return self._trainer.accumulate_grad_batches

    @property
    def strategy(self) -> Any:
        """How processes work together."""
        return self._trainer.strategy

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self._trainer.strategy.root_device

    @property
    def rank(self) -> int:
        """Number of this process among all, from 0."""
        return self._trainer.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine, from 0."""
        return self._trainer.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine, from 0."""
        return self._trainer.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._trainer.world_size

    def broadcast(self, value: Value) -> Value:
        """The first process's value."""
        return self._trainer.strategy.broadcast(value)

    def barrier(self) -> None:
        """Wait for all processes."""
        self._trainer.strategy.barrier()

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers, before a model is judged."""
        share_buffers(self._trainer, network)

    @property
    def transform(self) -> Any:
        """The pre-processor's transform, or ``None``."""
        return getattr(self._model.pre_processor, "transform", None)

    @property
    def num_normal_categories(self) -> int | None:
        """Number of categories that are normal, if the datamodule tells."""
        return getattr(getattr(self._trainer, "datamodule", None), "num_normal_categories", None)

    @property
    def data_paths(self) -> dict[str, list[str]]:
        """Files of the data set by what they are for; validation and test images are known of a datamodule alone."""
        paths = {"normal training": self.images.paths}
        for what, name in (("validation", "val_data"), ("test", "test_data")):
            data = getattr(getattr(self._trainer, "datamodule", None), name, None)
            paths[what] = list(data.samples.image_path) if isinstance(data, AnomalibDataset) else []
        return paths

    @property
    def shared_folder(self) -> Path:
        """Beside ``v0``, ``v1`` ... that anomalib numbers the runs with: a resumed run has another number."""
        root = Path(self._trainer.default_root_dir)
        return root.parent if re.fullmatch(r"v\d+", root.name) else root
