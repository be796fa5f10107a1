"""Training images read beside the training: nothing of it, its random numbers included, changes."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anomalib.data import AnomalibDataset, Batch
    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer


def without_augmentations(dataset: AnomalibDataset, model: AnomalibModule) -> AnomalibDataset:
    """The same images, only resized as the model's pre-processor wants them."""
    plain: Any = copy.copy(dataset)
    resizes = extract_transforms_by_type(getattr(model.pre_processor, "transform", None), Resize)
    if resizes:
        plain.augmentations = resizes[-1]
    return plain


def own_batches(trainer: Trainer, model: AnomalibModule, dataset: AnomalibDataset) -> Iterator[tuple[range, Batch]]:
    """This process's share of the training images, in their own order, preprocessed, on its device.

    Args:
        trainer: Its training loader says how images are read.
        model: Its pre-processor is applied.
        dataset: The training images.

    Yields:
        The images' rows in the data set, and the images.
    """
    loader: DataLoader = trainer.train_dataloader
    images, step = len(dataset), loader.batch_size or 1
    batches = [range(start, min(start + step, images)) for start in range(0, images, step)]
    own = batches[trainer.local_rank :: trainer.num_devices]
    for rows, batch in zip(own, own_loader(loader, dataset, list(chain(*own))), strict=True):
        yield rows, preprocessed(trainer, model, batch)


def own_loader(loader: DataLoader, dataset: AnomalibDataset, order: Sequence[int]) -> DataLoader:
    """A loader like the trainer's own of other images or in another order."""
    return DataLoader(
        dataset,
        batch_size=loader.batch_size or 1,
        sampler=order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # the random numbers of the training are left alone
    )


def preprocessed(trainer: Trainer, model: AnomalibModule, batch: Batch) -> Batch:
    """A batch of one's own as a training step gets it."""
    batch = trainer.strategy.batch_to_device(batch)
    if model.pre_processor is not None:
        model.pre_processor.on_train_batch_start(trainer, model, batch, 0)
    return batch
